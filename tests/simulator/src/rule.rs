//! How a broken rule is reported: by its name, in a panic that ends the run.

/// What stands before the name of a rule.
const BROKEN: &str = "broken rule ";

/// Ends the run: `rule` does not hold.
#[track_caller]
pub fn broken(rule: &'static str, text: impl AsRef<str>) -> ! {
    panic!("{BROKEN}{rule}: {}", text.as_ref());
}

/// The name of the rule that a panic with this message is about, and the rest. An assertion of the code under test is
/// a rule, too.
pub fn rule_of(message: &str) -> (&str, &str) {
    let named = message.strip_prefix(BROKEN).and_then(|rest| rest.split_once(": "));
    named.unwrap_or(("assertion", message))
}
