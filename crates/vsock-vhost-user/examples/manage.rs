//! Manages guests from a program of one's own: adds two, follows what happens to them,
//! changes the groups of one, and removes both.
//!
//! ```sh
//! cargo run -p vsock-vhost-user --example manage
//! ```
//!
//! With a minute to spare for VMMs that connect to the sockets it names:
//!
//! ```sh
//! cargo run -p vsock-vhost-user --example manage -- 60
//! ```

#![allow(clippy::print_stdout, reason = "it shows what happens")]

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vsock_packet::GuestCid;
use vsock_vhost_user::{Changes, Events, GuestConfig, NoEvent, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(0), |text| text.parse())?;
    let dir = std::env::temp_dir().join(format!("manage-{}", std::process::id()));
    std::fs::create_dir(&dir)?;

    // A server is shared as it is: any thread may add, change, list and remove.
    let server = Arc::new(Server::new());
    let events = server.events();
    let log = thread::spawn(move || follow(&events));

    for cid in [3, 4] {
        let config = GuestConfig {
            groups: vec!["friends".to_owned()],
            ..GuestConfig::new(
                GuestCid::new(cid)?,
                dir.join(format!("vm{cid}.sock")),
                dir.join(format!("vm{cid}.vsock")),
            )
        };
        server.add(config)?; // Both of its sockets listen now.
    }
    for guest in server.guests() {
        println!(
            "{}: {:?}, {}",
            guest.cid,
            guest.state,
            guest.uds_path.display()
        );
    }

    let end = Instant::now() + Duration::from_secs(seconds);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left.min(Duration::from_secs(5)));
        for connection in server.connections(None) {
            println!("{connection:?}");
        }
    }

    // The two may not meet any more: what they have with each other is reset at once.
    let alone = Changes {
        groups: Some(Vec::new()),
        ..Changes::default()
    };
    server.change(GuestCid::new(4)?, &alone)?;

    // Their connections end, their threads are joined and their sockets gone.
    for cid in [3, 4] {
        server.remove(GuestCid::new(cid)?);
    }
    std::fs::remove_dir(&dir)?;
    drop(server);
    log.join().map_err(|_| "the log has panicked")?;
    Ok(())
}

/// Prints what happens until the server has ended.
fn follow(events: &Events) {
    loop {
        match events.recv_timeout(Duration::from_secs(60)) {
            Ok(event) => println!("{event:?}"),
            Err(NoEvent::Yet) => (),
            Err(NoEvent::Ever) => return,
        }
    }
}
