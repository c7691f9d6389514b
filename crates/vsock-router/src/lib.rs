//! vsock-router
