//! How orchestrators reach each other over TCP: TLS 1.3 with certificates of the cluster's own authority, and requests
//! with one answer each. Not here: heartbeats, which are UDP and must not wait behind anything.

pub(crate) mod message;
pub(crate) mod peer;
pub(crate) mod server;
