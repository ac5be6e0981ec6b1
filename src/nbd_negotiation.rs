//! The first half of an NBD connection, from the client's side: fixed newstyle, NBD_OPT_GO, no structured replies,
//! which the kernel's client does not know. Afterwards the connection is whoever's wants to send requests. It shares
//! no code with the server, so that a mistake there is not made twice.

use std::io::{self, ErrorKind, Read, Write};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPTION_STARTTLS: u32 = 5;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;
/// Bytes of an option's reply.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// What the server says of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    /// Bytes of it.
    pub(crate) size_bytes: u64,
    /// Its transmission flags.
    pub(crate) flags: u16,
    /// Offsets and lengths are multiples of this.
    pub(crate) block_bytes: u32,
    /// The longest read or write.
    pub(crate) request_bytes_max: u32,
    /// What the server calls it.
    pub(crate) description: String,
}

impl Default for Export {
    /// What the protocol says for servers that do not say.
    fn default() -> Self {
        Self {
            size_bytes: 0,
            flags: 0,
            block_bytes: 1,
            request_bytes_max: 32 << 20,
            description: String::new(),
        }
    }
}

/// Asks for the export called `name`, up to where requests may be sent.
pub(crate) fn negotiate(stream: &mut (impl Read + Write), name: &str) -> io::Result<Export> {
    greet(stream)?;
    choose(stream, name)
}

/// The second part of it: asks for the export called `name`.
pub(crate) fn choose(stream: &mut (impl Read + Write), name: &str) -> io::Result<Export> {
    ask(stream, name)?;
    let mut export = Export::default();
    loop {
        let (kind, body) = reply(stream, OPTION_GO)?;
        match kind {
            REPLY_ACK => return Ok(export),
            REPLY_INFO => learn(&mut export, &body),
            kind if kind & REPLY_ERROR_BIT != 0 => {
                let text = String::from_utf8_lossy(&body);
                let message = format!("the server refuses the export ({kind:#x}): {text}");
                return Err(io::Error::new(ErrorKind::ConnectionRefused, message));
            }
            _ => {}
        }
    }
}

/// Between the two: has the server begin TLS. Without it nothing is asked for.
pub(crate) fn start_tls(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let option = [&OPTION_MAGIC.to_be_bytes()[..], &OPTION_STARTTLS.to_be_bytes(), &[0; 4]].concat();
    stream.write_all(&option)?;
    match reply(stream, OPTION_STARTTLS)? {
        (REPLY_ACK, body) if body.is_empty() => Ok(()),
        (kind, _) => Err(io::Error::new(
            ErrorKind::ConnectionRefused,
            format!("the server does not speak TLS ({kind:#x}): set nbd-tls = \"on\" for the volume"),
        )),
    }
}

/// One reply to an option: its kind and what it carries.
fn reply(stream: &mut impl Read, to: u32) -> io::Result<(u32, Vec<u8>)> {
    let magic = u64::from_be_bytes(take(stream)?);
    let (option, kind) = (u32::from_be_bytes(take(stream)?), u32::from_be_bytes(take(stream)?));
    let length_bytes = u32::from_be_bytes(take(stream)?);
    if magic != OPTION_REPLY_MAGIC || option != to || length_bytes > OPTION_REPLY_BYTES_MAX {
        return Err(garbled("the server's reply to an option is not understood"));
    }
    let mut body = vec![0; length_bytes as usize];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}

/// The first part of it: what every connection begins with.
pub(crate) fn greet(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let (magic, option_magic) = (u64::from_be_bytes(take(stream)?), u64::from_be_bytes(take(stream)?));
    let flags = u16::from_be_bytes(take(stream)?);
    if magic != MAGIC || option_magic != OPTION_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(garbled("the server does not speak fixed newstyle NBD"));
    }
    stream.write_all(&u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes())
}

fn ask(stream: &mut impl Write, name: &str) -> io::Result<()> {
    let name_bytes = u32::try_from(name.len()).map_err(|_| garbled("the export's name is too long"))?;
    let mut option = Vec::new();
    option.extend(OPTION_MAGIC.to_be_bytes());
    option.extend(OPTION_GO.to_be_bytes());
    option.extend((name_bytes + 10).to_be_bytes());
    option.extend(name_bytes.to_be_bytes());
    option.extend(name.as_bytes());
    option.extend(2u16.to_be_bytes());
    option.extend(INFO_DESCRIPTION.to_be_bytes());
    option.extend(INFO_BLOCK_SIZE.to_be_bytes());
    stream.write_all(&option)
}

/// Takes what one information says; of those too short or unknown, nothing.
fn learn(export: &mut Export, body: &[u8]) {
    let Some((kind, rest)) = body.split_first_chunk() else { return };
    let number =
        |at: usize| rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    match u16::from_be_bytes(*kind) {
        INFO_EXPORT => {
            if let Some((size, rest)) = rest.split_first_chunk()
                && let Some((flags, _)) = rest.split_first_chunk()
            {
                export.size_bytes = u64::from_be_bytes(*size);
                export.flags = u16::from_be_bytes(*flags);
            }
        }
        INFO_DESCRIPTION => export.description = String::from_utf8_lossy(rest).into_owned(),
        INFO_BLOCK_SIZE => {
            if let (Some(block), Some(longest)) = (number(0), number(8)) {
                (export.block_bytes, export.request_bytes_max) = (block, longest);
            }
        }
        _ => {}
    }
}

/// The next bytes of the stream.
pub(crate) fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The other side does not keep to the protocol.
pub(crate) fn garbled(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Answers what it was made with, whatever is said to it.
    struct Script(Cursor<Vec<u8>>);

    impl Read for Script {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting() -> Vec<u8> {
        [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat()
    }

    fn said(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        let head = [OPTION_GO.to_be_bytes(), kind.to_be_bytes(), length.to_be_bytes()].concat();
        [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, body].concat()
    }

    fn negotiate_with(script: &[Vec<u8>]) -> io::Result<Export> {
        negotiate(&mut Script(Cursor::new(script.concat())), "r0")
    }

    #[test]
    fn what_the_server_says_is_taken() {
        let size = said(REPLY_INFO, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0x2d]);
        let blocks = said(REPLY_INFO, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 0, 64, 0, 0]);
        let text = said(REPLY_INFO, b"\0\x02a volume");
        let export = negotiate_with(&[greeting(), size, text, blocks, said(REPLY_ACK, &[])]).unwrap();
        let expected = Export {
            size_bytes: 1 << 16,
            flags: 0x12d,
            block_bytes: 512,
            request_bytes_max: 4 << 20,
            description: "a volume".into(),
        };
        assert_eq!(export, expected);
    }

    #[test]
    fn informations_that_are_short_or_unknown_change_nothing() {
        let odd = [&[][..], &[0], &[0, 0, 1], &[0, 3, 0, 0, 2, 0], &[0, 9, 1, 2, 3]];
        let replies = odd.iter().flat_map(|body| said(REPLY_INFO, body)).collect();
        let export = negotiate_with(&[greeting(), replies, said(REPLY_ACK, &[])]).unwrap();
        assert_eq!(export, Export::default());
    }

    #[test]
    fn a_refusal_says_why() {
        let error =
            negotiate_with(&[greeting(), said(REPLY_ERROR_BIT | 6, b"node a is Secondary")]).unwrap_err();
        assert!(error.to_string().contains("node a is Secondary"), "{error}");
    }

    #[test]
    fn a_server_without_tls_is_asked_for_nothing() {
        let no = [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &[0, 0, 0, 5, 0x80, 0, 0, 1, 0, 0, 0, 0]].concat();
        let error = start_tls(&mut Script(Cursor::new(no))).unwrap_err();
        assert!(error.to_string().contains("nbd-tls"), "{error}");
        let yes = [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &[0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0]].concat();
        start_tls(&mut Script(Cursor::new(yes))).unwrap();
    }

    #[test]
    fn another_protocol_is_an_error() {
        let mut oldstyle = greeting();
        oldstyle[17] = 0;
        for script in [b"HTTP/1.1 400 Bad Request".to_vec(), oldstyle, [greeting(), vec![7; 20]].concat()] {
            assert_eq!(negotiate_with(&[script]).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }
}
