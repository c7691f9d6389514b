//! vsock-connection
