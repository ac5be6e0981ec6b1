//! The cluster's secrets as one node has them: one, or two while the keys are rotated. What is proven with which is in
//! `auth` and `identity`; where they lie, in `config`.
//!
//! ```text
//! own = O                  nobody has heard of another
//! own = O, next = N        N is accepted here; when that is so on every node, they may change over
//! own = N, old = O         N is used here, O still accepted; when N is used on every node, O may go
//! own = N
//! ```

use crate::identity::derive;
use crate::options::Secret;

/// The secrets that a node accepts, and which of them it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// What this node proves itself with.
    pub own: Secret,
    /// What all nodes are going to use.
    pub next: Option<Secret>,
    /// What they used before.
    pub old: Option<Secret>,
}

/// What a secret is called: nothing follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub u64);

impl KeyId {
    /// The name of a secret.
    #[must_use]
    pub fn of(secret: &Secret) -> Self {
        let drawn = derive(secret, b"name");
        Self(u64::from_le_bytes(*drawn.first_chunk().expect("it has 32 bytes")))
    }
}

impl Secrets {
    /// One secret: no keys are being rotated.
    #[must_use]
    pub fn only(own: Secret) -> Self {
        Self { own, next: None, old: None }
    }

    /// All that another node may prove itself with, the own first.
    pub fn accepted(&self) -> impl Iterator<Item = &Secret> {
        [Some(&self.own), self.next.as_ref(), self.old.as_ref()].into_iter().flatten()
    }

    /// Whether keys are being rotated.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.next.is_some() || self.old.is_some()
    }

    /// What clients from outside know this node by: what they were given before a rotation is good until the end of it.
    #[must_use]
    pub fn known_to_clients(&self) -> &Secret {
        self.old.as_ref().unwrap_or(&self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_nothing_and_tells_secrets_apart() {
        let secret = Secret(b"0123456789abcdef".to_vec());
        assert_eq!(KeyId::of(&secret), KeyId::of(&secret.clone()));
        assert_ne!(KeyId::of(&secret), KeyId::of(&Secret(b"0123456789abcdeg".to_vec())));
        assert!(!secret.0.windows(8).any(|part| part == KeyId::of(&secret).0.to_le_bytes()));
    }
}
