//! The kernel's NBD client, spoken to over generic netlink: connect, reconfigure, disconnect, and the event that a
//! connection died. Only the messages; what is asked for and why is the caller's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator, Parseable, ParseableParametrized,
    emit_u32, emit_u64, parse_u32,
};
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;

const FAMILY: &str = "nbd";
const EVENTS: &str = "nbd_mc_group";
/// Bytes of the longest message that the kernel sends here, with room to spare.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

const COMMAND_CONNECT: u8 = 1;
const COMMAND_DISCONNECT: u8 = 2;
const COMMAND_RECONFIGURE: u8 = 3;
const COMMAND_LINK_DEAD: u8 = 4;

const ATTRIBUTE_INDEX: u16 = 1;
const ATTRIBUTE_SIZE_BYTES: u16 = 2;
const ATTRIBUTE_BLOCK_SIZE_BYTES: u16 = 3;
const ATTRIBUTE_SERVER_FLAGS: u16 = 5;
const ATTRIBUTE_SOCKETS: u16 = 7;
const ATTRIBUTE_DEAD_CONNECTION_TIMEOUT: u16 = 8;
const ATTRIBUTE_BACKEND_IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub(crate) enum NetlinkError {
    /// The module is not loaded.
    #[error("this kernel has no NBD client loaded: run `modprobe nbd` first")]
    NoNbd,
    /// The process may not.
    #[error("attaching needs root (CAP_SYS_ADMIN)")]
    Forbidden,
    /// The device is taken.
    #[error("the device is in use by another NBD client: choose another one, or none to get a free one")]
    Busy,
    /// Anything else it says.
    #[error("the kernel refuses: {0}; its log (dmesg) may say more")]
    Refused(#[source] io::Error),
    /// The socket to the kernel failed.
    #[error("netlink failed: {0}")]
    Socket(#[from] io::Error),
    /// What came is no message.
    #[error("the kernel's message is not understood: {0}")]
    Garbled(DecodeError),
}

/// What the kernel must know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) size_bytes: u64,
    /// Bytes of a logical block.
    pub(crate) block_bytes: u32,
    /// The transmission flags of the NBD protocol.
    pub(crate) flags: u16,
    /// How long requests wait for a new connection when none is left.
    pub(crate) dead_time: Duration,
}

/// The kernel's NBD client.
#[derive(Debug)]
pub(crate) struct Kernel {
    socket: Socket,
    family: u16,
    events: u32,
    sequence: u32,
}

impl Kernel {
    /// Finds the kernel's NBD client.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        let mut kernel = Self { socket, family: 0, events: 0, sequence: 0 };
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        });
        let answer = kernel.ask(question).map_err(|error| match error {
            NetlinkError::Refused(source) if source.kind() == io::ErrorKind::NotFound => NetlinkError::NoNbd,
            other => other,
        })?;
        for attribute in answer.into_iter().flat_map(|message: GenlMessage<GenlCtrl>| message.payload.nlas) {
            match attribute {
                GenlCtrlAttrs::FamilyId(id) => kernel.family = id,
                GenlCtrlAttrs::McastGroups(groups) => kernel.events = group_called(&groups, EVENTS),
                _ => {}
            }
        }
        if kernel.family == 0 { Err(NetlinkError::NoNbd) } else { Ok(kernel) }
    }

    /// Makes a device of `sockets`, each negotiated up to transmission. Without an index the kernel takes a free
    /// device. Gives its index.
    pub(crate) fn connect(
        &mut self,
        index: Option<u32>,
        settings: &Settings,
        identifier: &str,
        sockets: &[impl AsFd],
    ) -> Result<u32, NetlinkError> {
        let mut attributes: Vec<DefaultNla> =
            index.map(|index| number(ATTRIBUTE_INDEX, index)).into_iter().collect();
        attributes.extend([
            long(ATTRIBUTE_SIZE_BYTES, settings.size_bytes),
            long(ATTRIBUTE_BLOCK_SIZE_BYTES, u64::from(settings.block_bytes)),
            long(ATTRIBUTE_SERVER_FLAGS, u64::from(settings.flags)),
            long(ATTRIBUTE_DEAD_CONNECTION_TIMEOUT, settings.dead_time.as_secs()),
            text(ATTRIBUTE_BACKEND_IDENTIFIER, identifier),
            list_of(sockets),
        ]);
        let answers = self.tell(COMMAND_CONNECT, attributes)?;
        let index = answers.iter().find_map(|answer| answer.payload.index());
        index.ok_or_else(|| NetlinkError::Garbled(DecodeError::from("no device was named")))
    }

    /// Puts `sockets` in the place of dead connections; those that are not needed are left alone. Refused if the
    /// device was connected with another identifier.
    pub(crate) fn reconfigure(
        &mut self,
        index: u32,
        identifier: &str,
        sockets: &[impl AsFd],
    ) -> Result<(), NetlinkError> {
        let attributes = vec![
            number(ATTRIBUTE_INDEX, index),
            text(ATTRIBUTE_BACKEND_IDENTIFIER, identifier),
            list_of(sockets),
        ];
        self.tell(COMMAND_RECONFIGURE, attributes).map(drop)
    }

    /// Gives a device another size. Refused if it was connected with another identifier.
    pub(crate) fn resize(&mut self, index: u32, identifier: &str, bytes: u64) -> Result<(), NetlinkError> {
        let attributes = vec![
            number(ATTRIBUTE_INDEX, index),
            text(ATTRIBUTE_BACKEND_IDENTIFIER, identifier),
            long(ATTRIBUTE_SIZE_BYTES, bytes),
        ];
        self.tell(COMMAND_RECONFIGURE, attributes).map(drop)
    }

    /// Ends a device: what is under way fails, and it has no size any more.
    pub(crate) fn disconnect(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.tell(COMMAND_DISCONNECT, vec![number(ATTRIBUTE_INDEX, index)]).map(drop)
    }

    /// Starts listening for dead connections.
    pub(crate) fn deaths(&self) -> Result<Deaths, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.add_membership(self.events)?;
        socket.set_non_blocking(true)?;
        Ok(Deaths { socket })
    }

    fn tell(
        &mut self,
        command: u8,
        attributes: Vec<DefaultNla>,
    ) -> Result<Vec<GenlMessage<NbdMessage>>, NetlinkError> {
        let mut message = GenlMessage::from_payload(NbdMessage { command, attributes });
        message.set_resolved_family_id(self.family);
        self.ask(message)
    }

    /// Sends a request and collects what comes before its acknowledgement.
    fn ask<T>(&mut self, request: T) -> Result<Vec<T>, NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable<Error = DecodeError>,
        NetlinkMessage<T>: From<T>,
    {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            for answer in receive(&self.socket)? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(refusal(error.to_io())),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// Tells of connections that died.
#[derive(Debug)]
pub(crate) struct Deaths {
    socket: Socket,
}

impl Deaths {
    /// Waits up to `limit`, or for a signal. Says whether a connection of the device died since the last call;
    /// also if events were missed.
    pub(crate) fn wait(&self, index: u32, limit: Duration) -> Result<bool, NetlinkError> {
        let limit = Timespec::try_from(limit).expect("a limit in seconds");
        let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut waiting, Some(&limit)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut died = false;
        loop {
            match receive::<GenlMessage<NbdMessage>>(&self.socket) {
                Ok(messages) => died |= messages.iter().any(|message| is_death_of(message, index)),
                Err(NetlinkError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(died);
                }
                // The kernel had more to say than the socket could hold.
                Err(NetlinkError::Socket(error)) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                    died = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_death_of(message: &NetlinkMessage<GenlMessage<NbdMessage>>, index: u32) -> bool {
    matches!(&message.payload, NetlinkPayload::InnerMessage(inner)
        if inner.payload.command == COMMAND_LINK_DEAD && inner.payload.index() == Some(index))
}

/// One datagram, which may hold several messages.
fn receive<T>(socket: &Socket) -> Result<Vec<NetlinkMessage<T>>, NetlinkError>
where
    T: NetlinkDeserializable<Error = DecodeError>,
{
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES_MAX);
    socket.recv(&mut bytes, 0)?;
    let mut messages = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let message = NetlinkMessage::<T>::deserialize(rest).map_err(NetlinkError::Garbled)?;
        // Messages begin at multiples of four bytes; the last one needs no padding.
        let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
        rest = &rest[length..];
        messages.push(message);
    }
    Ok(messages)
}

fn refusal(error: io::Error) -> NetlinkError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetlinkError::Forbidden,
        io::ErrorKind::ResourceBusy => NetlinkError::Busy,
        _ => NetlinkError::Refused(error),
    }
}

fn group_called(groups: &[Vec<McastGrpAttrs>], name: &str) -> u32 {
    let is_meant = |group: &&Vec<McastGrpAttrs>| {
        group.iter().any(|attribute| matches!(attribute, McastGrpAttrs::Name(other) if other == name))
    };
    let id = |attribute: &McastGrpAttrs| if let McastGrpAttrs::Id(id) = attribute { Some(*id) } else { None };
    groups.iter().find(is_meant).and_then(|group| group.iter().find_map(id)).unwrap_or(0)
}

/// A message of the family, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NbdMessage {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl NbdMessage {
    fn index(&self) -> Option<u32> {
        let attribute = self.attributes.iter().find(|attribute| attribute.kind() == ATTRIBUTE_INDEX)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        parse_u32(&value).ok()
    }
}

impl GenlFamily for NbdMessage {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for NbdMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for NbdMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, _>>()?;
        Ok(Self { command: header.cmd, attributes })
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    let mut bytes = vec![0; 4];
    emit_u32(&mut bytes, value).expect("four bytes");
    DefaultNla::new(kind, bytes)
}

fn long(kind: u16, value: u64) -> DefaultNla {
    let mut bytes = vec![0; 8];
    emit_u64(&mut bytes, value).expect("eight bytes");
    DefaultNla::new(kind, bytes)
}

/// A string with the zero byte that the kernel expects.
fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn list_of(sockets: &[impl AsFd]) -> DefaultNla {
    let item = |socket: BorrowedFd<'_>| {
        let fd = u32::try_from(socket.as_raw_fd()).expect("an open descriptor is no negative number");
        nested(SOCKET_ITEM, &[number(SOCKET_FD, fd)])
    };
    let items: Vec<DefaultNla> = sockets.iter().map(|socket| item(socket.as_fd())).collect();
    nested(ATTRIBUTE_SOCKETS, &items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(attribute: &DefaultNla) -> Vec<u8> {
        let mut bytes = vec![0xff; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn attributes_are_as_the_kernel_reads_them() {
        assert_eq!(bytes_of(&number(ATTRIBUTE_INDEX, 3)), [8, 0, 1, 0, 3, 0, 0, 0]);
        assert_eq!(bytes_of(&long(ATTRIBUTE_SIZE_BYTES, 0x1_0000)), [12, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes_of(&text(ATTRIBUTE_BACKEND_IDENTIFIER, "a")), [6, 0, 10, 0, b'a', 0, 0, 0]);
        let item = nested(SOCKET_ITEM, &[number(SOCKET_FD, 5)]);
        assert_eq!(bytes_of(&item), [12, 0, 1, 0x80, 8, 0, 1, 0, 5, 0, 0, 0]);
        let list = bytes_of(&nested(ATTRIBUTE_SOCKETS, &[item.clone(), item]));
        assert_eq!(list[..4], [28, 0, 7, 0x80]);
        assert_eq!(list.len(), 28);
    }

    #[test]
    fn an_event_names_its_device() {
        let event = NbdMessage { command: COMMAND_LINK_DEAD, attributes: vec![number(ATTRIBUTE_INDEX, 7)] };
        let mut bytes = vec![0; event.buffer_len()];
        event.emit(&mut bytes);
        let header = GenlHeader { cmd: COMMAND_LINK_DEAD, version: 1 };
        let parsed = NbdMessage::parse_with_param(&bytes, header).unwrap();
        assert_eq!(parsed, event);
        assert_eq!(parsed.index(), Some(7));
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let header = GenlHeader { cmd: COMMAND_LINK_DEAD, version: 1 };
        assert!(NbdMessage::parse_with_param(&[8, 0, 1, 0, 7], header).is_err());
    }
}
