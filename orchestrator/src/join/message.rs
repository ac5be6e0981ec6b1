//! What a newcomer and a member say to each other inside TLS: one question, one answer, as JSON.

use serde::{Deserialize, Serialize};

use super::{from_hex, to_hex};

/// What both ends draw from their connection is drawn for.
pub(crate) const BINDING_LABEL: &[u8] = b"holdfast join";
/// Bytes of a question: nobody has proven anything yet.
pub(crate) const ASK_BYTES_MAX: usize = 1 << 10;

/// What both ends of a connection draw from it, and nobody else can.
pub(crate) type Binding = [u8; 32];

/// A newcomer asks to be let in.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ask {
    /// In hexadecimal.
    proof: String,
}

impl Ask {
    pub(super) fn new(proof: &[u8]) -> Self {
        Self { proof: to_hex(proof) }
    }

    /// The proof; nothing, which proves nothing, if it was none.
    pub(crate) fn proof(&self) -> Vec<u8> {
        from_hex(&self.proof).unwrap_or_default()
    }
}

/// What the member says to that.
#[derive(Serialize, Deserialize)]
pub(crate) enum Answer {
    Given(Given),
    Refused(Reason),
}

/// What a newcomer is given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Name of the cluster.
    pub cluster: String,
    /// The node that it is to be.
    pub node: String,
    /// The member that answers.
    pub by: String,
    /// The configuration file as it is.
    pub configuration: String,
    /// The secret in hexadecimal; `None` if it stands in the configuration.
    secret: Option<String>,
}

impl Given {
    pub(crate) fn new(
        cluster: String,
        node: String,
        by: String,
        configuration: String,
        secret: Option<&[u8]>,
    ) -> Self {
        Self { cluster, node, by, configuration, secret: secret.map(to_hex) }
    }

    /// What goes into the file of the secret; `None` if it stands in the configuration.
    #[must_use]
    pub fn secret(&self) -> Option<Vec<u8>> {
        self.secret.as_deref().and_then(from_hex)
    }
}

/// Why a newcomer is given nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// The member knows no such key.
    Unknown,
    /// Somebody was let in with it already.
    UsedUp,
    /// Its time is over.
    Expired,
    /// The member has nothing to give.
    Member(String),
}
