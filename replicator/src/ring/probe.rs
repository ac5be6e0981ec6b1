//! What the kernel's io_uring must be able to do. Asked once, so that an old kernel is named at the start and not
//! by the first operation that fails.

use io_uring::{IoUring, Probe, opcode};

use crate::error::RingError;

/// The operations the data path uses, with their names in `io_uring_enter(2)`.
const NEEDED: [(u8, &str); 11] = [
    (opcode::Read::CODE, "IORING_OP_READ"),
    (opcode::Write::CODE, "IORING_OP_WRITE"),
    (opcode::ReadFixed::CODE, "IORING_OP_READ_FIXED"),
    (opcode::WriteFixed::CODE, "IORING_OP_WRITE_FIXED"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
    (opcode::Fallocate::CODE, "IORING_OP_FALLOCATE"),
    (opcode::Recv::CODE, "IORING_OP_RECV"),
    (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
    (opcode::AcceptMulti::CODE, "IORING_OP_ACCEPT"),
    (opcode::Connect::CODE, "IORING_OP_CONNECT"),
    (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
];

/// Checks operations and features.
pub(super) fn check(ring: &IoUring) -> Result<(), RingError> {
    let mut probe = Probe::new();
    let asked = ring.submitter().register_probe(&mut probe);
    asked.map_err(|source| RingError::Register { what: "a probe", source })?;
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect();
    let features = ring.params();
    let needed = [
        (features.is_feature_nodrop(), "IORING_FEAT_NODROP"),
        (features.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        (features.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
        (features.is_feature_fast_poll(), "IORING_FEAT_FAST_POLL"),
    ];
    missing.extend(needed.iter().filter(|(has, _)| !has).map(|(_, name)| *name));
    if missing.is_empty() { Ok(()) } else { Err(RingError::TooOld { missing: missing.join(", ") }) }
}
