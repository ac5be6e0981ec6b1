//! How a machine comes into a cluster: a member makes a token for it, and for that token it is given the configuration and
//! the secret, once. In between lies a connection of TLS 1.3 to the orchestrators' port, under a name that no node has.
//!
//! ```text
//! newcomer                                member
//!    |--- TLS: join.holdfast.internal --->|
//!    |<-- certificate of the authority ---|   the newcomer knows its fingerprint, or says nothing more
//!    |--- proof of the one-time key ----->|   an HMAC over what both draw from this very connection
//!    |<-- configuration and secret -------|   the key is used up
//! ```
//!
//! The key itself never leaves the token. Not here: what the newcomer writes where, which is the command's.

mod dial;
mod invitations;
mod message;
mod token;

pub use dial::{JoinError, join};
pub(crate) use invitations::Invitations;
pub use message::Given;
pub(crate) use message::{ASK_BYTES_MAX, Answer, Ask, BINDING_LABEL, Binding, Reason};
pub(crate) use token::OneTimeKey;
pub use token::{Token, TokenError};

/// Bytes as text.
fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a text; `None` if it is not one of bytes.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!((from_hex("abc"), from_hex("0g"), from_hex("é0")), (None, None, None));
    }
}
