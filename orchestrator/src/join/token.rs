//! A token: where a member answers, how it is known, and a key for one time. Text in, text out.
//!
//! ```text
//! hf1- and in hexadecimal:  count u8 | count times (4 or 6 u8, address, port u16) | fingerprint [32] | key [16] | crc32 u32
//! ```
//!
//! Numbers are big-endian. The CRC finds what was lost while copying; it proves nothing.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use replicator::welcome::Fingerprint;
use thiserror::Error;

use super::{from_hex, to_hex};

const PREFIX: &str = "hf1-";
/// Addresses in a token.
const ADDRESSES_MAX: usize = 8;
const V4: u8 = 4;
const V6: u8 = 6;

/// A key that is good for one time.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct OneTimeKey(pub(crate) [u8; 16]);

impl std::fmt::Debug for OneTimeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneTimeKey(..)")
    }
}

/// What a machine needs to come into a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where the member that made it answers, the first to be tried first.
    pub(crate) addresses: Vec<SocketAddr>,
    /// The authority of its cluster.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) key: OneTimeKey,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is something else.
    #[error(
        "this is no token: one begins with {PREFIX}, as `holdfast cluster token NODE` on a member prints it"
    )]
    NotOne,
    /// Some of it is missing or was changed.
    #[error(
        "the token is not whole: something was lost or changed while it was copied; copy it again, in one piece"
    )]
    Garbled,
}

impl Token {
    /// A token for whoever finds a member at one of `addresses`; more of them than fit are left out.
    pub(crate) fn new(mut addresses: Vec<SocketAddr>, fingerprint: Fingerprint, key: OneTimeKey) -> Self {
        addresses.truncate(ADDRESSES_MAX);
        Self { addresses, fingerprint, key }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = u8::try_from(self.addresses.len()).expect("there are few");
        let mut bytes = vec![count];
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(V4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(V6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        bytes.extend_from_slice(&self.fingerprint.0);
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        write!(f, "{PREFIX}{}", to_hex(&bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NotOne)?;
        let bytes = from_hex(digits).ok_or(TokenError::Garbled)?;
        let (body, crc) = bytes.split_last_chunk().ok_or(TokenError::Garbled)?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return Err(TokenError::Garbled);
        }
        decode(body).ok_or(TokenError::Garbled)
    }
}

fn decode(body: &[u8]) -> Option<Token> {
    let (count, mut rest) = body.split_first()?;
    let mut addresses = Vec::new();
    for _ in 0..*count {
        let (address, behind) = decode_address(rest)?;
        addresses.push(address);
        rest = behind;
    }
    let (fingerprint, key) = rest.split_first_chunk()?;
    let key = OneTimeKey(key.try_into().ok()?);
    let is_sound = (1..=ADDRESSES_MAX).contains(&addresses.len());
    is_sound.then_some(Token { addresses, fingerprint: Fingerprint(*fingerprint), key })
}

fn decode_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (ip, rest) = match *kind {
        V4 => rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        V6 => rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let addresses = ["10.0.0.1:7787", "[fd00::2]:7000"].map(|text| text.parse().unwrap()).to_vec();
        Token::new(addresses, Fingerprint([7; 32]), OneTimeKey([9; 16]))
    }

    #[test]
    fn a_token_is_read_back() {
        assert_eq!(format!(" {}\n", token()).parse(), Ok(token()));
    }

    #[test]
    fn it_is_not_shown_in_a_log() {
        assert!(!format!("{:?}", token()).contains("9, 9"));
    }

    #[test]
    fn what_was_lost_or_changed_while_copying_is_noticed() {
        let text = token().to_string();
        for len in PREFIX.len()..text.len() {
            assert_eq!(text[..len].parse::<Token>(), Err(TokenError::Garbled), "{len}");
        }
        for place in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(changed.parse::<Token>(), Err(TokenError::Garbled), "{place}");
        }
        assert_eq!("a secret".parse::<Token>(), Err(TokenError::NotOne));
        assert_eq!("".parse::<Token>(), Err(TokenError::NotOne));
    }

    #[test]
    fn whatever_has_a_good_crc_is_a_token_or_none_and_never_a_panic() {
        for count in [0, 1, 2, 8, 9, 255] {
            for kind in [0, V4, V6, 255] {
                for len in 0..200 {
                    let mut bytes = vec![kind; len];
                    bytes.insert(0, count);
                    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
                    let text = format!("{PREFIX}{}", to_hex(&bytes));
                    if let Ok(token) = text.parse::<Token>() {
                        assert_eq!(token.to_string(), text);
                    }
                }
            }
        }
    }
}
