//! The interface of the kernel's ublk driver: numbers, and structures as bytes, from `linux/ublk_cmd.h`.
#![expect(clippy::host_endian_bytes, reason = "the kernel's structures are in the host's order")]

use crate::ring::COMMAND_BYTES;

/// The driver copies no payloads; the server reads and writes them on the device's file. Linux 6.5.
pub(crate) const FLAG_USER_COPY: u64 = 1 << 7;
/// The device outlives its server, and a new one may take it over.
pub(crate) const FLAG_USER_RECOVERY: u64 = 1 << 3;
/// Requests that the old server had are given to the new one.
pub(crate) const FLAG_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are numbered as ioctls are.
pub(crate) const FLAG_IOCTL_ENCODE: u64 = 1 << 6;

pub(crate) const ADD: u32 = control(READ | WRITE, 0x04);
pub(crate) const DELETE: u32 = control(READ | WRITE, 0x05);
pub(crate) const DELETE_LATER: u32 = control(READ, 0x14);
pub(crate) const START: u32 = control(READ | WRITE, 0x06);
pub(crate) const STOP: u32 = control(READ | WRITE, 0x07);
pub(crate) const SET_PARAMETERS: u32 = control(READ | WRITE, 0x08);
pub(crate) const UPDATE_SIZE: u32 = control(READ | WRITE, 0x15);
pub(crate) const INFO: u32 = control(READ, 0x02);
pub(crate) const FEATURES: u32 = control(READ, 0x13);
pub(crate) const RECOVERY_BEGIN: u32 = control(READ | WRITE, 0x10);
pub(crate) const RECOVERY_END: u32 = control(READ | WRITE, 0x11);

/// Take a request of a tag.
pub(crate) const FETCH: u32 = number(READ | WRITE, 0x20, IO_BYTES);
/// Answer a tag's request and take the next one.
pub(crate) const COMMIT_AND_FETCH: u32 = number(READ | WRITE, 0x21, IO_BYTES);

/// Operations of requests.
pub(crate) const OPERATION_READ: u32 = 0;
pub(crate) const OPERATION_WRITE: u32 = 1;
pub(crate) const OPERATION_FLUSH: u32 = 2;
pub(crate) const OPERATION_DISCARD: u32 = 3;
pub(crate) const OPERATION_WRITE_ZEROES: u32 = 5;
/// The part of a descriptor's first word that is the operation.
pub(crate) const OPERATION_MASK: u32 = 0xff;
/// Answer only when it is durable.
pub(crate) const REQUEST_FUA: u32 = 1 << 13;
/// Zeroes stay allocated.
pub(crate) const REQUEST_NO_UNMAP: u32 = 1 << 15;

/// A device that has not been started, or was stopped.
pub(crate) const STATE_DEAD: u16 = 0;
/// A device with its server.
pub(crate) const STATE_LIVE: u16 = 1;
/// A device that waits for a new server.
pub(crate) const STATE_QUIESCED: u16 = 2;

const ATTRIBUTE_READ_ONLY: u32 = 1;
const ATTRIBUTE_VOLATILE_CACHE: u32 = 1 << 2;
const ATTRIBUTE_FUA: u32 = 1 << 3;
const PARAMETERS_BASIC: u32 = 1;
const PARAMETERS_DISCARD: u32 = 1 << 1;

/// Bytes of a sector, the unit of positions and lengths.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Tags of a queue.
pub(crate) const TAGS_MAX: u16 = 4096;
/// Bytes of `struct ublksrv_ctrl_dev_info`.
pub(crate) const INFO_BYTES: usize = 64;
/// Bytes of the set of features.
pub(crate) const FEATURES_BYTES: usize = 8;
/// Bytes of `struct ublksrv_ctrl_cmd`.
const CONTROL_BYTES: u32 = 32;
/// Bytes of `struct ublksrv_io_cmd`.
const IO_BYTES: u32 = 16;
/// Where the payloads of requests begin in the device's file.
const PAYLOADS_AT: u64 = 0x8000_0000;
/// Bits of a place in a payload; the tag comes above.
const PAYLOAD_BITS: u32 = 25;

const READ: u32 = 2;
const WRITE: u32 = 1;

const fn number(direction: u32, which: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | which
}

const fn control(direction: u32, which: u32) -> u32 {
    number(direction, which, CONTROL_BYTES)
}

/// Where the payload of a tag's request begins in the device's file.
pub(crate) fn payload_at(tag: u16) -> u64 {
    PAYLOADS_AT + (u64::from(tag) << PAYLOAD_BITS)
}

/// The body of [`FETCH`] and [`COMMIT_AND_FETCH`] on the first queue.
pub(crate) fn io_command(tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// A control command for a device, or for none with `u32::MAX`.
pub(crate) fn control_command(device: u32, len: usize, address: u64, data: u64) -> [u8; COMMAND_BYTES] {
    let len = u16::try_from(len).expect("structures are small");
    let mut bytes = [0; COMMAND_BYTES];
    bytes[..4].copy_from_slice(&device.to_ne_bytes());
    // No queue is meant.
    bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    bytes[6..8].copy_from_slice(&len.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// `struct ublksrv_ctrl_dev_info`, what is of use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) tags: u16,
    pub(crate) state: u16,
    pub(crate) request_bytes_max: u32,
    pub(crate) device: u32,
    pub(crate) server_pid: i32,
    pub(crate) flags: u64,
    /// Of no meaning to the driver.
    pub(crate) mark: u64,
}

impl Info {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; INFO_BYTES];
        bytes[..2].copy_from_slice(&1u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tags.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.state.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.request_bytes_max.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.device.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.server_pid.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.mark.to_ne_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let array = |at: usize| bytes[at..at + 4].try_into().expect("four bytes");
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let short = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        Self {
            tags: short(2),
            state: short(4),
            request_bytes_max: u32::from_ne_bytes(array(8)),
            device: u32::from_ne_bytes(array(12)),
            server_pid: i32::from_ne_bytes(array(16)),
            flags: long(24),
            mark: long(32),
        }
    }
}

/// What the kernel is told of a device, in its own units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) physical_block_bytes: u32,
    pub(crate) request_bytes_max: u32,
    pub(crate) zero_bytes_max: u64,
    pub(crate) read_only: bool,
}

impl Parameters {
    /// `struct ublk_params`, with its basic part and that of discards.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let sectors = |bytes: u64| bytes / SECTOR_BYTES;
        let short_sectors = |bytes| u32::try_from(sectors(bytes)).expect("limits of requests are small");
        let shift = |bytes: u32| u8::try_from(bytes.trailing_zeros()).expect("less than 32");
        let read_only = if self.read_only { ATTRIBUTE_READ_ONLY } else { 0 };
        let mut bytes = vec![0; 60];
        let (len, types) = (60u32, PARAMETERS_BASIC | PARAMETERS_DISCARD);
        let attributes = ATTRIBUTE_VOLATILE_CACHE | ATTRIBUTE_FUA | read_only;
        let mut word = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        word(0, len);
        word(4, types);
        word(8, attributes);
        word(16, short_sectors(u64::from(self.request_bytes_max)));
        word(40, self.logical_block_bytes);
        word(44, self.physical_block_bytes);
        word(48, short_sectors(self.zero_bytes_max));
        word(52, short_sectors(self.zero_bytes_max));
        let (logical, physical) = (shift(self.logical_block_bytes), shift(self.physical_block_bytes));
        // Logical and physical blocks; the best and the smallest length of a request.
        bytes[12..16].copy_from_slice(&[logical, physical, physical, physical]);
        bytes[24..32].copy_from_slice(&sectors(self.size_bytes).to_ne_bytes());
        // Ranges in one discard.
        bytes[56..58].copy_from_slice(&1u16.to_ne_bytes());
        bytes
    }
}

/// Reads the set of features.
pub(crate) fn features(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes[..FEATURES_BYTES].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernel() {
        let known = [
            (ADD, 0xc020_7504),
            (DELETE, 0xc020_7505),
            (START, 0xc020_7506),
            (STOP, 0xc020_7507),
            (SET_PARAMETERS, 0xc020_7508),
            (INFO, 0x8020_7502),
            (FEATURES, 0x8020_7513),
            (DELETE_LATER, 0x8020_7514),
            (RECOVERY_BEGIN, 0xc020_7510),
            (RECOVERY_END, 0xc020_7511),
            (FETCH, 0xc010_7520),
            (COMMIT_AND_FETCH, 0xc010_7521),
        ];
        for (number, kernel) in known {
            assert_eq!(number, kernel, "{number:#x}");
        }
    }

    #[test]
    fn what_is_told_of_a_device_is_read_back() {
        let info = Info {
            tags: 129,
            state: STATE_QUIESCED,
            request_bytes_max: 1 << 20,
            device: 3,
            server_pid: 77,
            flags: FLAG_USER_COPY,
            mark: u64::MAX - 1,
        };
        assert_eq!(Info::decode(&info.encode()), info);
    }

    #[test]
    fn payloads_of_tags_do_not_overlap() {
        assert_eq!(payload_at(0), 0x8000_0000);
        assert_eq!(payload_at(1) - payload_at(0), 32 << 20);
    }
}
