//! Hand-over of listening sockets between two processes: the one that has them, and its successor.
pub mod channel;
pub mod sockets;
