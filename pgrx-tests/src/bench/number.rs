//! Numbers as people read them.

/// `1,000 rows`, `1 row`.
pub fn many(number: u32, what: &str) -> String {
    format!(
        "{} {what}{}",
        grouped(number.into()),
        if number == 1 { "" } else { "s" }
    )
}

/// Thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let of = [0, 999, 1000, 1_000_000].map(grouped);
        assert_eq!(of, ["0", "999", "1,000", "1,000,000"]);
    }
}
