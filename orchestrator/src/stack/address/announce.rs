//! Words to the neighbours: gratuitous ARP and unsolicited neighbour advertisements say where an address is now, an ARP
//! probe asks whether somebody has it.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::kernel::{HARDWARE_BYTES, Kernel};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const HARDWARE_ETHERNET: u16 = 1;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ARP_BYTES: usize = 28;
const BROADCAST: [u8; HARDWARE_BYTES] = [0xff; HARDWARE_BYTES];
/// Questions whether somebody has an address, and how long an answer to each is waited for. A machine of the same network
/// answers within a millisecond; RFC 5227 waits for seconds, which a failover does not have.
const PROBES: u32 = 3;
const PROBE_WITHIN: Duration = Duration::from_millis(50);

const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const OPTION_TARGET_HARDWARE: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Routers do not pass on what was not sent by a neighbour.
const HOPS: u32 = 255;

/// Tells the neighbours where an address is. An interface without hardware address has none to tell.
pub(super) fn announce(kernel: &Kernel, address: IpAddr) -> io::Result<()> {
    let Some(hardware) = kernel.hardware else { return Ok(()) };
    match address {
        IpAddr::V4(address) => {
            let socket = arp_socket(kernel.index)?;
            let to = link_address(kernel.index, &BROADCAST);
            // Some listen to the one, some to the other.
            socket.send_to(&arp(ARP_REQUEST, hardware, address, address), &to)?;
            socket.send_to(&arp(ARP_REPLY, hardware, address, address), &to).map(drop)
        }
        IpAddr::V6(address) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            socket.set_multicast_hops_v6(HOPS)?;
            socket.set_multicast_if_v6(kernel.index)?;
            socket.bind(&SocketAddrV6::new(address, 0, 0, kernel.index).into())?;
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, kernel.index);
            socket.send_to(&advertisement(hardware, address), &to.into()).map(drop)
        }
    }
}

/// The hardware address of somebody else who has an IPv4 address, if anybody answers.
pub(super) fn somebody_else(kernel: &Kernel, address: IpAddr) -> io::Result<Option<String>> {
    let (Some(hardware), IpAddr::V4(address)) = (kernel.hardware, address) else { return Ok(None) };
    let socket = arp_socket(kernel.index)?;
    let to = link_address(kernel.index, &BROADCAST);
    for _ in 0..PROBES {
        socket.send_to(&arp(ARP_REQUEST, hardware, Ipv4Addr::UNSPECIFIED, address), &to)?;
        let deadline = Instant::now() + PROBE_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut bytes = [0; ARP_BYTES];
            match (&socket).read(&mut bytes) {
                Ok(len) => {
                    if let Some(other) = speaks_for(&bytes[..len], address).filter(|other| *other != hardware)
                    {
                        let text = other.map(|byte| format!("{byte:02x}")).join(":");
                        return Ok(Some(text));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Who says in this ARP message that it has the address.
fn speaks_for(message: &[u8], address: Ipv4Addr) -> Option<[u8; HARDWARE_BYTES]> {
    let sender = message.get(8..14)?;
    (message.get(14..18)? == address.octets()).then(|| sender.try_into().ok())?
}

fn arp(
    operation: u16,
    hardware: [u8; HARDWARE_BYTES],
    sender: Ipv4Addr,
    target: Ipv4Addr,
) -> [u8; ARP_BYTES] {
    let mut message = [0; ARP_BYTES];
    message[0..2].copy_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
    message[2..4].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    (message[4], message[5]) = (6, 4);
    message[6..8].copy_from_slice(&operation.to_be_bytes());
    message[8..14].copy_from_slice(&hardware);
    message[14..18].copy_from_slice(&sender.octets());
    if operation == ARP_REPLY {
        message[18..24].copy_from_slice(&BROADCAST);
    }
    message[24..28].copy_from_slice(&target.octets());
    message
}

fn advertisement(hardware: [u8; HARDWARE_BYTES], address: Ipv6Addr) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = NEIGHBOUR_ADVERTISEMENT;
    message[4] = OVERRIDE;
    message[8..24].copy_from_slice(&address.octets());
    (message[24], message[25]) = (OPTION_TARGET_HARDWARE, 1);
    message[26..32].copy_from_slice(&hardware);
    message
}

/// A socket for ARP on one interface; the kernel writes the Ethernet header.
fn arp_socket(index: u32) -> io::Result<Socket> {
    let protocol = i32::from(ETHERTYPE_ARP.to_be());
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol)))?;
    socket.bind(&link_address(index, &[]))?;
    Ok(socket)
}

/// An address of the link layer.
fn link_address(index: u32, hardware: &[u8]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_ll` is one of the addresses that a `sockaddr_storage` has room for, and zeroes are one.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET).expect("it is a small number");
    link.sll_protocol = ETHERTYPE_ARP.to_be();
    link.sll_ifindex = i32::try_from(index).expect("the kernel's indices are positive");
    link.sll_halen = u8::try_from(hardware.len()).expect("a few bytes");
    link.sll_addr[..hardware.len()].copy_from_slice(hardware);
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("a few bytes");
    // SAFETY: the storage holds a `sockaddr_ll`, whose length this is.
    unsafe { SockAddr::new(storage, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_announcement_speaks_for_its_address_and_a_probe_for_none() {
        let address = Ipv4Addr::new(10, 0, 0, 9);
        assert_eq!(speaks_for(&arp(ARP_REQUEST, HARDWARE, address, address), address), Some(HARDWARE));
        let probe = arp(ARP_REQUEST, HARDWARE, Ipv4Addr::UNSPECIFIED, address);
        assert_eq!(speaks_for(&probe, address), None);
        assert_eq!(speaks_for(&probe[..10], address), None, "what is cut off says nothing");
    }

    #[test]
    fn messages_are_as_the_standards_draw_them() {
        let address = Ipv4Addr::new(10, 0, 0, 9);
        let reply = arp(ARP_REPLY, HARDWARE, address, address);
        assert_eq!(reply[..8], [0, 1, 8, 0, 6, 4, 0, 2]);
        let advertisement = advertisement(HARDWARE, Ipv6Addr::LOCALHOST);
        assert_eq!(advertisement[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(advertisement[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }
}
