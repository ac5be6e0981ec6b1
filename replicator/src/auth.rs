//! The handshake between replicas: both ends prove that they know the cluster's secret before anything else is
//! parsed. Bytes in, bytes out; the core draws them, this file computes and checks the HMACs.

use ::ring::hmac;
use ::ring::rand::{SecureRandom, SystemRandom};
use replicator_core::units::VolumeId;
use replicator_core::wire::auth::{
    CHALLENGE_BYTES, Challenge, ChallengeError, End, NONCE_BYTES, PROOF_BYTES, transcript,
};
use thiserror::Error;

use crate::secrets::{KeyId, Secrets};

/// The most one end says at once.
pub(crate) const SAY_BYTES_MAX: usize = CHALLENGE_BYTES + PROOF_BYTES;

/// Why a peer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum AuthError {
    /// It does not speak our protocol.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// It speaks TLS, or refuses in it.
    #[error(
        "it speaks TLS and this node does not; `tls` must be the same in the configurations of all nodes"
    )]
    Tls,
    /// It wants another volume.
    #[error("it is for another volume ({0:032x})")]
    Volume(u128),
    /// It does not know the secret.
    #[error("it does not know the cluster's secret")]
    Proof,
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Say {
    bytes: [u8; SAY_BYTES_MAX],
    len: usize,
}

impl Say {
    fn new(parts: [&[u8]; 2]) -> Self {
        let mut say = Self { bytes: [0; SAY_BYTES_MAX], len: 0 };
        for part in parts {
            say.bytes[say.len..say.len + part.len()].copy_from_slice(part);
            say.len += part.len();
        }
        say
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What taking in bytes came to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More bytes are needed.
    Wait,
    /// Send this; `consumed` bytes are done with; if `done`, the peer is who it says and the stream begins.
    Step { consumed: usize, say: Option<Say>, done: bool },
}

/// One end of one handshake.
pub(crate) struct Handshake {
    end: End,
    /// Of all secrets that are accepted, the own first.
    keys: Vec<(KeyId, hmac::Key)>,
    own: Challenge,
    theirs: Option<Challenge>,
    /// By which the other end has proven itself.
    proven_with: Option<KeyId>,
}

impl Handshake {
    /// The dialing end, and what it says first.
    pub(crate) fn dial(secrets: &Secrets, volume: VolumeId) -> Result<(Self, Say), AuthError> {
        let handshake = Self::new(End::Dialer, secrets, volume)?;
        let say = Say::new([&handshake.own.encode(), &[]]);
        Ok((handshake, say))
    }

    /// The listening end, which waits.
    pub(crate) fn listen(secrets: &Secrets, volume: VolumeId) -> Result<Self, AuthError> {
        Self::new(End::Listener, secrets, volume)
    }

    fn new(end: End, secrets: &Secrets, volume: VolumeId) -> Result<Self, AuthError> {
        let nonce = random::<NONCE_BYTES>()?;
        let keys = secrets
            .accepted()
            .map(|secret| (KeyId::of(secret), hmac::Key::new(hmac::HMAC_SHA256, &secret.0)))
            .collect();
        let own = Challenge { volume, nonce };
        Ok(Self { end, keys, own, theirs: None, proven_with: None })
    }

    /// The secret that the other end has proven; `None` before it has.
    pub(crate) fn proven_with(&self) -> Option<KeyId> {
        self.proven_with
    }

    /// Takes in what came, from its beginning.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<Progress, AuthError> {
        // A handshake or an alert of TLS, before there is enough of it to be a challenge.
        if matches!(input, [0x15 | 0x16, 3, ..]) && self.theirs.is_none() {
            return Err(AuthError::Tls);
        }
        match (self.end, self.theirs) {
            (End::Dialer, _) => {
                let Some((challenge, proof)) = split(input) else { return Ok(Progress::Wait) };
                let theirs = self.check_challenge(challenge)?;
                self.proven_with = Some(self.verify(End::Listener, &self.own, &theirs, proof)?);
                let own = self.prove(End::Dialer, &self.own, &theirs);
                Ok(Progress::Step { consumed: SAY_BYTES_MAX, say: Some(Say::new([&own, &[]])), done: true })
            }
            (End::Listener, None) => {
                let Some(challenge) = input.first_chunk::<CHALLENGE_BYTES>() else {
                    return Ok(Progress::Wait);
                };
                let theirs = self.check_challenge(challenge)?;
                let proof = self.prove(End::Listener, &theirs, &self.own);
                self.theirs = Some(theirs);
                let say = Say::new([&self.own.encode(), &proof]);
                Ok(Progress::Step { consumed: CHALLENGE_BYTES, say: Some(say), done: false })
            }
            (End::Listener, Some(theirs)) => {
                let Some(proof) = input.first_chunk::<PROOF_BYTES>() else { return Ok(Progress::Wait) };
                self.proven_with = Some(self.verify(End::Dialer, &theirs, &self.own, proof)?);
                Ok(Progress::Step { consumed: PROOF_BYTES, say: None, done: true })
            }
        }
    }

    fn check_challenge(&self, bytes: &[u8; CHALLENGE_BYTES]) -> Result<Challenge, AuthError> {
        let theirs = Challenge::decode(bytes)?;
        if theirs.volume == self.own.volume { Ok(theirs) } else { Err(AuthError::Volume(theirs.volume.0)) }
    }

    fn prove(&self, prover: End, dialer: &Challenge, listener: &Challenge) -> [u8; PROOF_BYTES] {
        let tag = hmac::sign(&self.keys[0].1, &transcript(prover, dialer, listener));
        tag.as_ref().try_into().expect("an HMAC-SHA256 has 32 bytes")
    }

    /// The secret that was proven. Compares in constant time.
    fn verify(
        &self,
        prover: End,
        dialer: &Challenge,
        listener: &Challenge,
        proof: &[u8; PROOF_BYTES],
    ) -> Result<KeyId, AuthError> {
        let transcript = transcript(prover, dialer, listener);
        let is_it = |(_, key): &&(KeyId, hmac::Key)| hmac::verify(key, &transcript, proof).is_ok();
        self.keys.iter().find(is_it).map(|(id, _)| *id).ok_or(AuthError::Proof)
    }
}

fn split(input: &[u8]) -> Option<(&[u8; CHALLENGE_BYTES], &[u8; PROOF_BYTES])> {
    let (challenge, rest) = input.split_first_chunk()?;
    Some((challenge, rest.first_chunk()?))
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], AuthError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AuthError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Secret;

    fn secrets(bytes: &[u8]) -> Secrets {
        Secrets::only(Secret(bytes.to_vec()))
    }

    fn say(progress: &Progress) -> (Vec<u8>, bool) {
        match *progress {
            Progress::Step { say, done, .. } => (say.map_or(Vec::new(), |say| say.bytes().to_vec()), done),
            Progress::Wait => panic!("everything was there"),
        }
    }

    fn run(dialer: &Secrets, listener: &Secrets, volumes: [u128; 2]) -> Result<(), AuthError> {
        let (mut dialing, first) = Handshake::dial(dialer, VolumeId(volumes[0]))?;
        let mut listening = Handshake::listen(listener, VolumeId(volumes[1]))?;
        let (answer, done) = say(&listening.advance(first.bytes())?);
        assert!(!done);
        let (last, done) = say(&dialing.advance(&answer)?);
        assert!(done);
        let (nothing, done) = say(&listening.advance(&last)?);
        assert!(done && nothing.is_empty());
        Ok(())
    }

    #[test]
    fn who_knows_the_secret_gets_in_and_nobody_else() {
        let (right, wrong) = (secrets(&[7; 32]), secrets(&[8; 32]));
        assert_eq!(run(&right, &right, [1, 1]), Ok(()));
        assert_eq!(run(&right, &wrong, [1, 1]), Err(AuthError::Proof));
        assert_eq!(run(&right, &right, [1, 2]), Err(AuthError::Volume(1)));
    }

    #[test]
    fn while_keys_are_rotated_either_end_may_use_either_key() {
        let secret = |byte| Secret(vec![byte; 32]);
        let accepting = Secrets { own: secret(7), next: Some(secret(8)), old: None };
        let using = Secrets { own: secret(8), next: None, old: Some(secret(7)) };
        for (dialer, listener) in [(&accepting, &using), (&using, &accepting)] {
            assert_eq!(run(dialer, listener, [1, 1]), Ok(()));
        }
        assert_eq!(run(&secrets(&[7; 32]), &using, [1, 1]), Err(AuthError::Proof), "the other end is ahead");
        let (mut dialing, first) = Handshake::dial(&accepting, VolumeId(1)).unwrap();
        let mut listening = Handshake::listen(&using, VolumeId(1)).unwrap();
        let (answer, _) = say(&listening.advance(first.bytes()).unwrap());
        dialing.advance(&answer).unwrap();
        assert_eq!(dialing.proven_with(), Some(KeyId::of(&secret(8))), "it says which one was proven");
    }

    #[test]
    fn a_listener_that_lets_the_wrong_dialer_speak_still_refuses_its_proof() {
        let secret = secrets(&[7; 32]);
        let (_, first) = Handshake::dial(&secret, VolumeId(1)).unwrap();
        let mut listening = Handshake::listen(&secret, VolumeId(1)).unwrap();
        let (answer, _) = say(&listening.advance(first.bytes()).unwrap());
        // Reflecting the listener's own proof must not work: the role is part of what is proven.
        let reflected = &answer[CHALLENGE_BYTES..];
        assert_eq!(listening.advance(reflected).unwrap_err(), AuthError::Proof);
    }

    #[test]
    fn every_prefix_waits_and_every_flipped_bit_is_refused() {
        let secret = secrets(b"secret");
        let (_, first) = Handshake::dial(&secret, VolumeId(1)).unwrap();
        for len in 0..CHALLENGE_BYTES {
            let mut listening = Handshake::listen(&secret, VolumeId(1)).unwrap();
            assert!(matches!(listening.advance(&first.bytes()[..len]), Ok(Progress::Wait)));
        }
        for bit in 0..PROOF_BYTES * 8 {
            let (mut dialing, first) = Handshake::dial(&secret, VolumeId(1)).unwrap();
            let mut listening = Handshake::listen(&secret, VolumeId(1)).unwrap();
            let (mut answer, _) = say(&listening.advance(first.bytes()).unwrap());
            answer[CHALLENGE_BYTES + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(dialing.advance(&answer).unwrap_err(), AuthError::Proof);
        }
    }

    #[test]
    fn tls_is_recognised() {
        let secret = secrets(b"secret");
        let alert = [0x15, 3, 3, 0, 2, 2, 40];
        let (mut dialing, _) = Handshake::dial(&secret, VolumeId(1)).unwrap();
        assert_eq!(dialing.advance(&alert).unwrap_err(), AuthError::Tls);
        let mut listening = Handshake::listen(&secret, VolumeId(1)).unwrap();
        assert_eq!(listening.advance(&[0x16, 3, 1]).unwrap_err(), AuthError::Tls);
    }

    #[test]
    fn hostile_bytes_are_errors() {
        let secret = secrets(b"secret");
        for byte in 0..=255u8 {
            let mut listening = Handshake::listen(&secret, VolumeId(1)).unwrap();
            assert!(listening.advance(&[byte; 200]).is_err());
            let (mut dialing, _) = Handshake::dial(&secret, VolumeId(1)).unwrap();
            assert!(dialing.advance(&[byte; 200]).is_err());
        }
    }
}
