//! A client made of bytes: builds messages, feeds them to a session, tells what came of it.

#![allow(dead_code, reason = "each test file uses a part")]

use nbd_frontend::{Advance, Export, Request, Session, SessionError, Step, fuzz, spec};

/// Bytes from hexadecimal digits; spaces are for reading.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|character| character.to_digit(16)).collect();
    assert_eq!(digits.len() % 2, 0);
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// What came of feeding some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) output: Vec<u8>,
    /// All steps but `NeedInput` and `SendOutput`.
    pub(crate) steps: Vec<Step>,
    pub(crate) error: Option<SessionError>,
}

/// Feeds all bytes as a driver would, taking the payloads of writes and dropping those of rejections.
pub(crate) fn feed(session: &mut Session, mut bytes: &[u8]) -> Heard {
    let exports = fuzz::exports();
    let mut heard = Heard::default();
    loop {
        let Advance { consumed, step } = match session.advance(bytes, &exports) {
            Ok(advance) => advance,
            Err(error) => {
                heard.error = Some(error);
                return heard;
            }
        };
        bytes = &bytes[consumed..];
        heard.output.append(session.output());
        let skip_bytes = match step {
            Step::NeedInput => {
                assert!(bytes.is_empty(), "all input is consumed");
                return heard;
            }
            Step::SendOutput => continue,
            Step::Request(request) if is_write(&request) => request.length_bytes as usize,
            Step::Reject(reject) => reject.drain_bytes as usize,
            _ => 0,
        };
        heard.steps.push(step);
        if step == Step::Disconnect {
            return heard;
        }
        bytes = bytes.get(skip_bytes..).unwrap_or_default();
    }
}

pub(crate) fn is_write(request: &Request) -> bool {
    matches!(request.command, nbd_frontend::Command::Write { .. })
}

/// A session whose greeting is answered with these client flags.
pub(crate) fn greeted(client_flags: u32) -> Session {
    let mut session = Session::new();
    let heard = feed(&mut session, &client_flags.to_be_bytes());
    assert_eq!((heard.output.len(), heard.error), (18, None));
    session
}

/// How a session in its transmission phase came there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// A session in its transmission phase; with chunks it has `base:allocation` selected.
pub(crate) fn entered(style: Style, name: &str) -> Session {
    let mut session = greeted(3);
    let mut bytes = match style {
        Style::Simple => Vec::new(),
        Style::Structured => option(spec::NBD_OPT_STRUCTURED_REPLY, b""),
        Style::Extended => option(spec::NBD_OPT_EXTENDED_HEADERS, b""),
    };
    if style != Style::Simple {
        bytes.extend(option(spec::NBD_OPT_SET_META_CONTEXT, &meta(name, &["base:allocation"])));
    }
    bytes.extend(option(spec::NBD_OPT_GO, &info(name, &[])));
    let heard = feed(&mut session, &bytes);
    assert_eq!((heard.steps, heard.error), (vec![Step::Negotiated], None));
    session
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut data = (text.len() as u32).to_be_bytes().to_vec();
    data.extend(text.as_bytes());
    data
}

/// A request header of the form this style uses; the cookie is always the same.
pub(crate) fn request(style: Style, flags: u16, kind: u16, offset: u64, length_bytes: u64) -> Vec<u8> {
    let is_extended = style == Style::Extended;
    let mut bytes = if is_extended { hex("21e41c71") } else { hex("25609513") };
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(COOKIE.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    if is_extended {
        bytes.extend(length_bytes.to_be_bytes());
    } else {
        bytes.extend((length_bytes as u32).to_be_bytes());
    }
    bytes
}

pub(crate) const COOKIE: u64 = 0x0102_0304_0506_0708;

/// One reply of the handshake: option, kind, data.
pub(crate) type Reply = (u32, u32, Vec<u8>);

/// Cuts handshake output into replies.
pub(crate) fn replies(mut output: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !output.is_empty() {
        assert_eq!(output[..8], hex("0003e889045565a9"));
        let word = |at: usize| u32::from_be_bytes(output[at..at + 4].try_into().unwrap());
        let end = 20 + word(16) as usize;
        replies.push((word(8), word(12), output[20..end].to_vec()));
        output = &output[end..];
    }
    replies
}

/// The kinds of the replies to one option.
pub(crate) fn kinds(session: &mut Session, kind: u32, data: &[u8]) -> Vec<u32> {
    let heard = feed(session, &option(kind, data));
    assert_eq!(heard.error, None);
    replies(&heard.output).into_iter().map(|(_, kind, _)| kind).collect()
}

/// The export of that name in the fixture.
pub(crate) fn export(name: &str) -> Export {
    fuzz::exports().into_iter().find(|export| export.name == name).unwrap()
}
