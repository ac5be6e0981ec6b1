//! The commented file that `holdfast config new` prints.

use super::secret::fresh_secret;
use super::uuid::{format_uuid, fresh_uuid};

/// A configuration of two nodes with a fresh UUID and a fresh secret, ready to be edited.
#[must_use]
pub fn example() -> String {
    TEMPLATE.replace("@UUID@", &format_uuid(fresh_uuid())).replace("@SECRET@", &fresh_secret())
}

const TEMPLATE: &str = include_str!("example.toml");
