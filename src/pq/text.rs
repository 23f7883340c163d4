//! What a server says, cut: its errors go into logs, warnings and the queue, and it may say anything.

use std::ffi::CStr;

/// Longest text, in bytes. PostgreSQL's own messages are far shorter; a query in a CONTEXT may not be.
const TEXT: usize = 4_000;
/// Longest name, in bytes.
const NAME: usize = 255;
/// Marks what was cut.
const CUT: &str = "...";

/// A message, without its trailing newline.
pub fn sanitize(text: &CStr) -> String {
    cut(text.to_bytes(), TEXT).trim_end().to_owned()
}

/// The name of an object.
pub fn name(text: &CStr) -> String {
    cut(text.to_bytes(), NAME)
}

/// Cut before it is converted, which may make three bytes of one.
fn cut(bytes: &[u8], longest: usize) -> String {
    if bytes.len() <= longest {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    // Not within a character, of which the rest has at most three bytes.
    let inside = |at: &usize| bytes[*at] & 0xc0 == 0x80;
    let end = (longest - 3..=longest)
        .rev()
        .find(|at| !inside(at))
        .unwrap_or(longest);
    String::from_utf8_lossy(&bytes[..end]).into_owned() + CUT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use proptest::prelude::*;

    #[test]
    fn a_short_text_stays_as_it_is() {
        assert_eq!(sanitize(c"failed\n"), "failed");
        assert_eq!(name(c"t_pkey"), "t_pkey");
        assert_eq!(cut("x".repeat(9).as_bytes(), 9), "x".repeat(9));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("abcdef".as_bytes(), 4), "abcd...");
        assert_eq!(cut("abc\u{20ac}def".as_bytes(), 5), "abc...");
        assert_eq!(cut("abc\u{20ac}def".as_bytes(), 6), "abc\u{20ac}...");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_grow_beyond_bounds() {
        assert_eq!(cut(&[0x80; 10], 4), "\u{fffd}\u{fffd}\u{fffd}\u{fffd}...");
        assert_eq!(cut(&[b'a', 0xff], 4), "a\u{fffd}");
    }

    #[test]
    fn any_bytes_become_a_text_that_is_no_longer_than_it_may_be() {
        let bytes = prop_oneof![
            fuzz::text().prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        fuzz::check(2_000, &(bytes, 4..12usize), |(bytes, longest)| {
            let cut = cut(&bytes, longest);
            match std::str::from_utf8(&bytes) {
                Ok(text) if text.len() <= longest => prop_assert_eq!(cut, text),
                Ok(text) => {
                    let kept = cut.strip_suffix(CUT).unwrap_or_default();
                    prop_assert!(text.starts_with(kept) && kept.len() <= longest, "{}", cut);
                    prop_assert!(kept.len() + 3 >= longest, "{}", cut);
                }
                // Three bytes for one that is no text.
                Err(_) => prop_assert!(cut.len() <= 3 * longest + CUT.len(), "{}", cut),
            }
            Ok(())
        });
    }
}
