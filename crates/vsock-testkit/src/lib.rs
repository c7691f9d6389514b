//! vsock-testkit
