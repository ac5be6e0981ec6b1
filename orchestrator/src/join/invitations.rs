//! Who was invited: the one-time keys that this member has made, and what became of them. Pure; they live as long as the
//! process, so a restart takes all of them back.

use std::collections::VecDeque;

use orchestrator_core::units::Instant;
use ring::hmac;

use super::message::{Binding, Reason};
use super::token::OneTimeKey;

/// Invitations remembered, those that are used up among them.
const KEPT: usize = 64;

struct Invitation {
    node: String,
    key: hmac::Key,
    until: Instant,
    is_used: bool,
}

/// The invitations of one process.
#[derive(Default)]
pub(crate) struct Invitations {
    list: VecDeque<Invitation>,
}

/// What a newcomer sends: that it has the key, for this connection alone.
pub(super) fn prove(key: &OneTimeKey, binding: &Binding) -> Vec<u8> {
    hmac::sign(&signing(key), binding).as_ref().to_vec()
}

fn signing(key: &OneTimeKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &key.0)
}

impl Invitations {
    /// Invites whoever has `key` to be `node`, once and not after `until`.
    pub(crate) fn invite(&mut self, node: &str, key: &OneTimeKey, until: Instant) {
        if self.list.len() == KEPT {
            self.list.pop_front();
        }
        self.list.push_back(Invitation { node: node.to_owned(), key: signing(key), until, is_used: false });
    }

    /// Whom the newcomer at the other end of the connection is to be. Its key is used up then.
    ///
    /// # Errors
    /// Why it is nobody.
    pub(crate) fn admit(&mut self, binding: &Binding, proof: &[u8], now: Instant) -> Result<String, Reason> {
        let is_its = |invitation: &&mut Invitation| hmac::verify(&invitation.key, binding, proof).is_ok();
        let invitation = self.list.iter_mut().find(is_its).ok_or(Reason::Unknown)?;
        if invitation.is_used {
            return Err(Reason::UsedUp);
        }
        if now >= invitation.until {
            return Err(Reason::Expired);
        }
        invitation.is_used = true;
        Ok(invitation.node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: Binding = [3; 32];

    fn key(byte: u8) -> OneTimeKey {
        OneTimeKey([byte; 16])
    }

    fn invited() -> Invitations {
        let mut invitations = Invitations::default();
        invitations.invite("b", &key(1), Instant(1_000));
        invitations
    }

    #[test]
    fn a_key_lets_in_once() {
        let mut invitations = invited();
        let proof = prove(&key(1), &BINDING);
        assert_eq!(invitations.admit(&BINDING, &proof, Instant(999)), Ok("b".to_owned()));
        assert_eq!(invitations.admit(&BINDING, &proof, Instant(999)), Err(Reason::UsedUp));
    }

    #[test]
    fn a_key_lets_in_until_its_time_is_over() {
        let proof = prove(&key(1), &BINDING);
        assert_eq!(invited().admit(&BINDING, &proof, Instant(1_000)), Err(Reason::Expired));
    }

    #[test]
    fn another_key_another_connection_and_no_proof_let_in_nobody() {
        let mut invitations = invited();
        let other = prove(&key(2), &BINDING);
        assert_eq!(invitations.admit(&BINDING, &other, Instant(0)), Err(Reason::Unknown));
        let replayed = prove(&key(1), &[4; 32]);
        assert_eq!(invitations.admit(&BINDING, &replayed, Instant(0)), Err(Reason::Unknown));
        for len in 0..32 {
            let cut = &prove(&key(1), &BINDING)[..len];
            assert_eq!(invitations.admit(&BINDING, cut, Instant(0)), Err(Reason::Unknown));
        }
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let mut invitations = invited();
        for _ in 0..KEPT {
            invitations.invite("b", &key(2), Instant(1_000));
        }
        let proof = prove(&key(1), &BINDING);
        assert_eq!(invitations.admit(&BINDING, &proof, Instant(0)), Err(Reason::Unknown));
        assert_eq!(invitations.list.len(), KEPT);
    }
}
