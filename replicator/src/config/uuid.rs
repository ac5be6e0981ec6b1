//! UUIDs: how a volume's identity is written.

use ring::rand::{SecureRandom, SystemRandom};

/// Parses a UUID: 32 hexadecimal digits, with or without the four hyphens. The nil UUID is none.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<u128> {
    let hyphens: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    if !hyphens.is_empty() && hyphens != [8, 13, 18, 23] {
        return None;
    }
    let digits = text.replace('-', "");
    let is_hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(&digits, 16).ok().filter(|number| is_hex && *number != 0)
}

/// Writes a UUID with hyphens.
#[must_use]
pub fn format_uuid(number: u128) -> String {
    let digits = format!("{number:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// A fresh random UUID (version 4).
///
/// # Panics
/// If the kernel gives no random bytes.
#[must_use]
pub fn fresh_uuid() -> u128 {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let number = 0x0191_5f1e_0a4b_4c3d_8e2f_0123_4567_89ab;
        assert_eq!(parse_uuid("01915f1e-0a4b-4c3d-8e2f-0123456789ab"), Some(number));
        assert_eq!(parse_uuid("01915F1E0A4B4C3D8E2F0123456789AB"), Some(number));
        assert_eq!(format_uuid(number), "01915f1e-0a4b-4c3d-8e2f-0123456789ab");
        let wrong = ["", "1", "+1915f1e0a4b4c3d8e2f0123456789ab", "0191-5f1e0a4b4c3d8e2f0123456789ab", "é"];
        for text in wrong {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
        assert_eq!(parse_uuid("00000000-0000-0000-0000-000000000000"), None);
    }

    #[test]
    fn fresh_ones_differ() {
        let (one, other) = (fresh_uuid(), fresh_uuid());
        assert_ne!(one, other);
        assert_eq!(parse_uuid(&format_uuid(one)), Some(one));
    }
}
