//! vhost-user-vsock
fn main() {}
