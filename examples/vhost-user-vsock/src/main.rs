//! The program `vhost-user-vsock`: all of it is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_user_vsock::main()
}
