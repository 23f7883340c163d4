//! WHEN conditions of the triggers that send a table: which of its rows are sent.

/// Which rows are sent: those that the triggers for INSERT let through, by their conditions; `None` for all.
pub fn of_rows<'c>(inserting: impl Iterator<Item = Option<&'c str>>) -> Option<String> {
    let conditions: Option<Vec<String>> = inserting
        .map(|condition| condition.map(|text| format!("({text})")))
        .collect();
    conditions
        .filter(|list| !list.is_empty())
        .map(|list| list.join(" OR "))
}

/// The condition in a trigger's definition as `pg_get_triggerdef` writes it.
pub fn in_definition(definition: &str) -> Option<String> {
    const BEGINS: &str = " FOR EACH ROW WHEN (";
    let bytes = definition.as_bytes();
    let mut quote = None;
    let mut depth = 0usize;
    let mut start = None;
    for (at, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (Some(open), byte) if open == *byte => quote = None,
            (Some(_), _) => {}
            // A quote inside is doubled, and so opens at once again what it has closed.
            (None, b'\'' | b'"') => quote = Some(*byte),
            (None, b'(') => {
                let opens = definition[..=at].ends_with(BEGINS);
                if start.is_none() && opens {
                    start = Some(at + 1);
                    depth = 0;
                } else {
                    depth += 1;
                }
            }
            (None, b')') => match start {
                Some(start) if depth == 0 => return Some(definition[start..at].to_owned()),
                _ => depth = depth.saturating_sub(1),
            },
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_of_a_trigger_is_found_whatever_is_quoted_around_it() {
        let definition = |name: &str, condition: &str, args: &str| {
            format!(
                "CREATE TRIGGER {name} AFTER INSERT ON public.t FOR EACH ROW WHEN ({condition}) \
                 EXECUTE FUNCTION public.sync_dml({args})"
            )
        };
        for condition in [
            "(new.region = 'eu'::text)",
            "((new.a > 1) AND (new.b = ')('::text))",
            "(new.\")\" = 'it''s ('::text)",
        ] {
            for name in ["plain", "\" FOR EACH ROW WHEN (\""] {
                let text = definition(name, condition, "'dst', ') EXECUTE FUNCTION x('");
                assert_eq!(in_definition(&text).as_deref(), Some(condition), "{text}");
            }
        }
        assert_eq!(
            in_definition(
                "CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f('(')"
            ),
            None
        );
    }
}
