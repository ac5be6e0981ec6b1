//! One connection from its greeting to its end: the phases and the contract with the driver.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::error::SessionError;
use crate::export::{BlockSizes, Export, ExportFlags};
use crate::handshake::{Handshake, Progress, Tls};
use crate::meta::{Context, ContextKind};
use crate::reply::ReplyFormat;
use crate::request::{Reject, Request};
use crate::transmission::Transmission;

/// The server's side of one connection. The duties of its driver are listed at the crate.
pub struct Session {
    phase: Phase,
    /// Set once, and then nothing is done any more.
    end: Option<Result<(), SessionError>>,
    output: Vec<u8>,
}

/// Where a session stands. What was agreed on outlives the end, for the replies still outstanding.
///
/// ```text
///  Handshake --NBD_OPT_GO, NBD_OPT_EXPORT_NAME--> Transmission --NBD_CMD_DISC--> end: Ok
///    |   |                                            |                            ^
///    |   +------------------NBD_OPT_ABORT-------------|----------------------------+
///    +---------------------> end: Err <---------------+   the stream is out of step or hostile
/// ```
enum Phase {
    // Boxed: it is long, and gone after the first few messages.
    Handshake(Box<Handshake>),
    Transmission(Transmission),
}

/// What one call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// How many bytes of the input are done with.
    pub consumed: usize,
    /// What to do next.
    pub step: Step,
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is consumed; come again with more.
    NeedInput,
    /// Take and send what is in `output`, then come again with the rest of the input.
    SendOutput,
    /// Send what is in `output` in the clear; all that follows, both ways, is in TLS. The next call is given what TLS
    /// carries. What came in the clear behind this belongs to nobody: whoever sent any is cut off.
    StartTls,
    /// The transmission phase begins with the next byte. Send what is in `output` before any reply.
    Negotiated,
    /// Carry it out. For a write, its `length_bytes` of payload come next in the stream and are the
    /// driver's; the next call is given what follows them.
    Request(Request),
    /// Drop `drain_bytes` from the stream, then send the error. The next call is given what follows them.
    Reject(Reject),
    /// The client is done: finish what is outstanding, send what is in `output`, close.
    Disconnect,
}

/// What was agreed on, as the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Which of the exports given to the call that said `Step::Negotiated`.
    pub export_index: usize,
    /// Its name.
    pub export_name: String,
    /// Its size; requests are held to it, whatever becomes of the export, until [`Session::grow`].
    pub size_bytes: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// The sizes requests must keep to.
    pub block: BlockSizes,
    /// How to reply.
    pub format: ReplyFormat,
    /// The contexts that were selected: block status may be asked for if there are any.
    pub contexts: Vec<Context>,
}

impl Negotiated {
    /// Whether a block status request may name its context in a payload. Only one of those is understood, and so it is
    /// not offered where there are more to name.
    pub(crate) fn takes_status_payload(&self) -> bool {
        let is_one = matches!(&self.contexts[..], [Context { kind: ContextKind::Allocation, .. }]);
        self.format == ReplyFormat::Extended && is_one
    }
}

impl Session {
    /// A connection just accepted. The greeting is in `output` at once.
    #[must_use]
    pub fn new() -> Self {
        Self::begin(Tls::Absent)
    }

    /// The same, of a server that tells nothing and does nothing before [`Step::StartTls`]: what the specification
    /// calls FORCEDTLS.
    #[must_use]
    pub fn requiring_tls() -> Self {
        Self::begin(Tls::Required)
    }

    fn begin(tls: Tls) -> Self {
        let mut output = Vec::new();
        let handshake = Box::new(Handshake::new(tls, &mut output));
        Self { phase: Phase::Handshake(handshake), end: None, output }
    }

    /// Takes bytes that follow those consumed before, until there is something to do.
    ///
    /// # Errors
    /// When the session cannot go on. The driver closes the connection; every later call says the same.
    pub fn advance(&mut self, input: &[u8], exports: &[Export]) -> Result<Advance, SessionError> {
        if let Some(end) = self.end {
            return end.map(|()| Advance { consumed: 0, step: Step::Disconnect });
        }
        let mut rest = input;
        let step = match &mut self.phase {
            Phase::Handshake(handshake) => handshake
                .advance(&mut rest, exports, &mut self.output)
                .map(|progress| self.on_handshake(progress)),
            Phase::Transmission(transmission) => transmission.advance(&mut rest),
        };
        self.end = match &step {
            Ok(Step::Disconnect) => Some(Ok(())),
            Err(error) => Some(Err(*error)),
            Ok(_) => None,
        };
        Ok(Advance { consumed: input.len() - rest.len(), step: step? })
    }

    /// Bytes of the handshake to send. The driver takes them all; while any are left the handshake stands
    /// still, so there is never more here than the answer to one option.
    pub const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What was agreed on, once the transmission phase has begun.
    #[must_use]
    pub const fn negotiated(&self) -> Option<&Negotiated> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission.negotiated()),
            Phase::Handshake(_) => None,
        }
    }

    /// The export has `size_bytes` from now on, and requests may use them: a client may have learned of it elsewhere.
    pub fn grow(&mut self, size_bytes: u64) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.grow(size_bytes);
        }
    }

    fn on_handshake(&mut self, progress: Progress) -> Step {
        match progress {
            Progress::NeedInput => Step::NeedInput,
            Progress::SendOutput => Step::SendOutput,
            Progress::StartTls => Step::StartTls,
            Progress::Disconnect => Step::Disconnect,
            Progress::Negotiated(negotiated) => {
                self.phase = Phase::Transmission(Transmission::new(negotiated));
                Step::Negotiated
            }
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}
