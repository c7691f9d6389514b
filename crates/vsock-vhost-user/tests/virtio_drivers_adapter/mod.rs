//! What `virtio-drivers` asks of a machine, given by the testkit: DMA memory that a device in
//! another process can map, and a transport to that device.

mod memory;
mod transport;

pub(crate) use memory::SharedMemory;
pub(crate) use transport::FrontendTransport;
