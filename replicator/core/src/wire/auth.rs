//! The handshake's transcript: both ends prove that they know the cluster's secret, with fresh nonces, before
//! anything else is parsed. This file lays out the bytes; the HMAC itself is computed by the shell.
//!
//! ```text
//! dialer                                listener
//!   | -- Challenge {nonce D} ------------> |
//!   | <-- Challenge {nonce L} + proof L -- |   proof = HMAC-SHA256(secret, role | D | L | volume)
//!   | -- proof D ------------------------> |
//! ```

use thiserror::Error;

use crate::bytes::{Reader, Short, Writer};
use crate::units::VolumeId;
use crate::wire::envelope::WIRE_VERSION;

const MAGIC: u64 = u64::from_le_bytes(*b"HFhello1");
/// Bytes of a challenge.
pub const CHALLENGE_BYTES: usize = 64;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes that a proof is the HMAC of.
pub const TRANSCRIPT_BYTES: usize = 8 + 2 * NONCE_BYTES + 16;

/// Which end of the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It opened the connection.
    Dialer,
    /// It accepted the connection.
    Listener,
}

/// The first message each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The volume the connection is for; the listener may have several.
    pub volume: VolumeId,
    /// Fresh and random.
    pub nonce: [u8; NONCE_BYTES],
}

/// Why bytes are not a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChallengeError {
    /// Fewer bytes than a challenge has.
    #[error("the handshake is cut short")]
    Short,
    /// Not the magic number.
    #[error("this is no Holdfast replica (bad magic)")]
    Magic,
    /// A version this program does not know.
    #[error("the peer speaks wire version {0}, this program {WIRE_VERSION}")]
    Version(u16),
}

impl From<Short> for ChallengeError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

impl Challenge {
    /// Encodes the challenge.
    #[must_use]
    pub fn encode(&self) -> [u8; CHALLENGE_BYTES] {
        let mut bytes = [0; CHALLENGE_BYTES];
        let mut writer = Writer::new(&mut bytes);
        writer.u64(MAGIC).u16(WIRE_VERSION).zeros(6).u128(self.volume.0).raw(&self.nonce);
        bytes
    }

    /// Decodes a challenge.
    ///
    /// # Errors
    /// Whatever makes these bytes no challenge.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChallengeError> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != MAGIC {
            return Err(ChallengeError::Magic);
        }
        let version = reader.u16()?;
        if version != WIRE_VERSION {
            return Err(ChallengeError::Version(version));
        }
        reader.skip(6)?;
        Ok(Self { volume: VolumeId(reader.u128()?), nonce: reader.array()? })
    }
}

/// The bytes whose HMAC proves that `prover` knows the secret.
#[must_use]
pub fn transcript(prover: End, dialer: &Challenge, listener: &Challenge) -> [u8; TRANSCRIPT_BYTES] {
    let mut bytes = [0; TRANSCRIPT_BYTES];
    let mut writer = Writer::new(&mut bytes);
    let role = match prover {
        End::Dialer => b"HFdialer",
        End::Listener => b"HFlisten",
    };
    writer.raw(role).raw(&dialer.nonce).raw(&listener.nonce).u128(dialer.volume.0);
    bytes
}
