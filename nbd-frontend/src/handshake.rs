//! The handshake phase: cuts the stream into options and drains those that are not understood.

use alloc::vec::Vec;

use crate::bytes::{Held, field, put};
use crate::error::SessionError;
use crate::export::Export;
use crate::option::{Answer, Choices, ClientOption, is_known, put_reply};
use crate::reply::ReplyFormat;
use crate::session::Negotiated;
use crate::{OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX, spec};

/// A session before its transmission phase.
pub(crate) struct Handshake {
    state: State,
    held: Held,
    /// Option data as it arrives; it grows with the bytes received, not with the length announced.
    data: Vec<u8>,
    choices: Choices,
    tls: Tls,
}

/// Whether what is said is in TLS, and must be.
///
/// ```text
/// Absent            Required --NBD_OPT_STARTTLS--> Present
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// It is not, and cannot be.
    Absent,
    /// It is not, and nothing else is said before it is.
    Required,
    /// It is.
    Present,
}

/// Where the handshake stands.
///
/// ```text
///                              known, not too large             complete
///  ClientFlags --> Header --------------------------> Data ---------------> (transmission)
///                    ^  \                              |
///                    |   \ unknown, too large, abort   |
///                    |    v                            |
///                    |   Drain --> (disconnect)        |
///                    +-----+---------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Header,
    Data { option: u32, missing_bytes: u32 },
    Drain { option: u32, missing_bytes: u32, then: Verdict },
}

/// The answer to an option whose data is of no interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Unsupported,
    TooBig,
    Abort,
    /// Nothing is told in the clear.
    TlsRequired,
    /// TLS begins once, and takes no data.
    BadStartTls,
}

/// What a call came to.
pub(crate) enum Progress {
    NeedInput,
    SendOutput,
    StartTls,
    Negotiated(Negotiated),
    Disconnect,
}

impl Handshake {
    /// Queues the greeting.
    pub(crate) fn new(tls: Tls, output: &mut Vec<u8>) -> Self {
        let flags = spec::NBD_FLAG_FIXED_NEWSTYLE | spec::NBD_FLAG_NO_ZEROES;
        let magics = [spec::INIT_PASSWD.to_be_bytes(), spec::IHAVEOPT.to_be_bytes()];
        put(output, &[&magics[0], &magics[1], &flags.to_be_bytes()]);
        let choices = Choices { no_zeroes: false, format: ReplyFormat::Simple, contexts_of: None };
        Self { state: State::ClientFlags, held: Held::new(), data: Vec::new(), choices, tls }
    }

    /// Goes on until an answer is queued, the phase ends or the input does.
    pub(crate) fn advance(
        &mut self,
        input: &mut &[u8],
        exports: &[Export],
        output: &mut Vec<u8>,
    ) -> Result<Progress, SessionError> {
        loop {
            if !output.is_empty() {
                // One answer at a time, or a client could make us queue without bound.
                return Ok(Progress::SendOutput);
            }
            match self.state {
                State::ClientFlags => {
                    if !self.held.fill(input, 4) {
                        return Ok(Progress::NeedInput);
                    }
                    self.on_client_flags()?;
                }
                State::Header => {
                    if !self.held.fill(input, spec::OPTION_HEADER_BYTES) {
                        return Ok(Progress::NeedInput);
                    }
                    self.on_header()?;
                }
                State::Data { option, missing_bytes } => {
                    let taken = take(input, missing_bytes);
                    self.data.extend_from_slice(taken);
                    let missing_bytes = missing_bytes - taken.len() as u32;
                    self.enter(State::Data { option, missing_bytes });
                    if missing_bytes > 0 {
                        return Ok(Progress::NeedInput);
                    }
                    if let Some(progress) = self.on_data(option, exports, output)? {
                        return Ok(progress);
                    }
                }
                State::Drain { option, missing_bytes, then } => {
                    let missing_bytes = missing_bytes - take(input, missing_bytes).len() as u32;
                    self.enter(State::Drain { option, missing_bytes, then });
                    if missing_bytes > 0 {
                        return Ok(Progress::NeedInput);
                    }
                    if let Some(progress) = self.on_drained(option, then, output) {
                        return Ok(progress);
                    }
                }
            }
        }
    }

    fn on_client_flags(&mut self) -> Result<(), SessionError> {
        let flags = u32::from_be_bytes(field(self.held.bytes(), 0));
        self.held.clear();
        let offered = spec::NBD_FLAG_C_FIXED_NEWSTYLE | spec::NBD_FLAG_C_NO_ZEROES;
        if flags & !offered != 0 {
            return Err(SessionError::ClientFlags(flags));
        }
        // A client without NBD_FLAG_C_FIXED_NEWSTYLE is served all the same: it will send only
        // NBD_OPT_EXPORT_NAME, which is the same in both styles.
        self.choices.no_zeroes = flags & spec::NBD_FLAG_C_NO_ZEROES != 0;
        self.enter(State::Header);
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), SessionError> {
        let header = self.held.bytes();
        let magic = u64::from_be_bytes(field(header, 0));
        let option = u32::from_be_bytes(field(header, 8));
        let length_bytes = u32::from_be_bytes(field(header, 12));
        self.held.clear();
        if magic != spec::IHAVEOPT {
            return Err(SessionError::OptionMagic(magic));
        }
        if u64::from(length_bytes) > PAYLOAD_BYTES_MAX {
            return Err(SessionError::OptionTooLarge { length_bytes });
        }
        if option == spec::NBD_OPT_EXPORT_NAME && length_bytes as usize > spec::STRING_BYTES_MAX {
            return Err(SessionError::NameTooLong);
        }
        if option == spec::NBD_OPT_EXPORT_NAME && self.tls == Tls::Required {
            // It has no reply that says no.
            return Err(SessionError::TlsRequired);
        }
        let missing_bytes = length_bytes;
        let too_big = length_bytes > OPTION_BYTES_MAX;
        let drain = |then| State::Drain { option, missing_bytes, then };
        self.enter(match option {
            spec::NBD_OPT_ABORT => drain(Verdict::Abort),
            spec::NBD_OPT_STARTTLS => match self.tls {
                Tls::Absent => drain(Verdict::Unsupported),
                Tls::Required if length_bytes == 0 => State::Data { option, missing_bytes },
                Tls::Required | Tls::Present => drain(Verdict::BadStartTls),
            },
            _ if self.tls == Tls::Required => drain(Verdict::TlsRequired),
            _ if !is_known(option) => drain(Verdict::Unsupported),
            _ if too_big => drain(Verdict::TooBig),
            _ => State::Data { option, missing_bytes },
        });
        Ok(())
    }

    fn on_data(
        &mut self,
        option: u32,
        exports: &[Export],
        output: &mut Vec<u8>,
    ) -> Result<Option<Progress>, SessionError> {
        if option == spec::NBD_OPT_STARTTLS {
            self.tls = Tls::Present;
            self.enter(State::Header);
            put_reply(output, option, spec::NBD_REP_ACK, &[]);
            return Ok(Some(Progress::StartTls));
        }
        let complete = ClientOption { option, data: &self.data };
        let answer = complete.answer(&mut self.choices, exports, output)?;
        self.data.clear();
        self.enter(State::Header);
        Ok(match answer {
            Answer::Stay => None,
            Answer::Enter(negotiated) => Some(Progress::Negotiated(negotiated)),
        })
    }

    fn on_drained(&mut self, option: u32, then: Verdict, output: &mut Vec<u8>) -> Option<Progress> {
        self.enter(State::Header);
        match then {
            Verdict::Abort => {
                put_reply(output, option, spec::NBD_REP_ACK, &[]);
                return Some(Progress::Disconnect);
            }
            Verdict::Unsupported => put_reply(output, option, spec::NBD_REP_ERR_UNSUP, &[]),
            Verdict::TlsRequired => {
                put_reply(output, option, spec::NBD_REP_ERR_TLS_REQD, &[b"NBD_OPT_STARTTLS must come first"]);
            }
            Verdict::BadStartTls => {
                let text = b"NBD_OPT_STARTTLS is said once, without data";
                put_reply(output, option, spec::NBD_REP_ERR_INVALID, &[text]);
            }
            Verdict::TooBig => {
                if option == spec::NBD_OPT_SET_META_CONTEXT {
                    // Even a setting that fails takes back the one before it.
                    self.choices.contexts_of = None;
                }
                put_reply(output, option, spec::NBD_REP_ERR_TOO_BIG, &[b"option data is too long"]);
            }
        }
        None
    }

    fn enter(&mut self, next: State) {
        assert!(self.state.may_become(next), "{:?} -> {next:?}", self.state);
        self.state = next;
    }
}

impl State {
    const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::ClientFlags | Self::Data { missing_bytes: 0, .. }, Self::Header)
            | (Self::Drain { missing_bytes: 0, .. }, Self::Header)
            | (Self::Header, Self::Data { .. } | Self::Drain { .. }) => true,
            (
                Self::Data { option: a, missing_bytes: before },
                Self::Data { option: b, missing_bytes: after },
            )
            | (
                Self::Drain { option: a, missing_bytes: before, .. },
                Self::Drain { option: b, missing_bytes: after, .. },
            ) => a == b && after <= before,
            _ => false,
        }
    }
}

/// Takes up to `count_max` bytes off the front of `input`.
fn take<'i>(input: &mut &'i [u8], count_max: u32) -> &'i [u8] {
    let (taken, rest) = input.split_at(input.len().min(count_max as usize));
    *input = rest;
    taken
}
