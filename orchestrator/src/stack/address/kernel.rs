//! An interface's addresses, asked for and changed over netlink. Only the messages; when and why is the caller's.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Place;

/// Bytes of a hardware address that we can speak from.
pub(super) const HARDWARE_BYTES: usize = 6;

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Present {
    /// It can be used.
    Usable,
    /// The kernel is still looking whether somebody else has it.
    Checked,
    /// Somebody else has it.
    Duplicate,
}

/// The kernel, asked about one interface.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Socket,
    sequence: u32,
    /// The interface.
    pub(super) index: u32,
    /// Its hardware address, if it has one as Ethernet does.
    pub(super) hardware: Option<[u8; HARDWARE_BYTES]>,
}

impl Kernel {
    /// Finds an interface.
    ///
    /// # Errors
    /// `ENODEV` if it does not exist.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        let mut kernel = Self { socket, sequence: 0, index: 0, hardware: None };
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(interface.to_owned()));
        for answer in kernel.ask(RouteNetlinkMessage::GetLink(question), 0)? {
            let RouteNetlinkMessage::NewLink(link) = answer else { continue };
            kernel.index = link.header.index;
            let hardware = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => <[u8; HARDWARE_BYTES]>::try_from(bytes.as_slice()).ok(),
                _ => None,
            });
            kernel.hardware = hardware.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        }
        if kernel.index == 0 { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok(kernel) }
    }

    /// How the address is on the interface, if it is.
    pub(super) fn find(&mut self, place: &Place) -> io::Result<Option<Present>> {
        let mut question = AddressMessage::default();
        question.header.family = family(place.address);
        let answers = self.ask(RouteNetlinkMessage::GetAddress(question), NLM_F_DUMP)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(found) if found.header.index == self.index => {
                has(&found, place.address).then_some(found)
            }
            _ => None,
        });
        Ok(found.map(|found| {
            let flags = found.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            });
            let flags = flags.unwrap_or(AddressFlags::empty());
            if flags.contains(AddressFlags::Dadfailed) {
                Present::Duplicate
            } else if flags.contains(AddressFlags::Tentative) {
                Present::Checked
            } else {
                Present::Usable
            }
        }))
    }

    /// Puts the address there for so many seconds from now on, or gives it more time. Over IPv6 the kernel looks itself
    /// whether somebody else has it, if that is wanted.
    pub(super) fn put(&mut self, place: &Place, lifetime_s: u32, refuses_duplicates: bool) -> io::Result<()> {
        let mut message = self.message(place);
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_valid, lifetime.ifa_preferred) = (lifetime_s, lifetime_s);
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        if place.address.is_ipv6() && !refuses_duplicates {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        Ok(())
    }

    /// Takes the address away.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if it is not there.
    pub(super) fn remove(&mut self, place: &Place) -> io::Result<()> {
        let message = self.message(place);
        self.ask(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK).map(drop)
    }

    fn message(&self, place: &Place) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(place.address);
        message.header.prefix_len = place.prefix_bits;
        message.header.index = self.index;
        message.attributes.push(AddressAttribute::Local(place.address));
        message.attributes.push(AddressAttribute::Address(place.address));
        message
    }

    /// Sends a message and gathers what the kernel answers.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let is_list = flags & NLM_F_DUMP == NLM_F_DUMP;
        let waits_for_word = is_list || flags & NLM_F_ACK != 0;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                let answer = answer.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let taken = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[taken..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if !waits_for_word {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Whether this is that address. Of a point-to-point link it is the near end.
fn has(message: &AddressMessage, address: IpAddr) -> bool {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(any) => Some(*any),
        _ => None,
    });
    local.or(any) == Some(address)
}
