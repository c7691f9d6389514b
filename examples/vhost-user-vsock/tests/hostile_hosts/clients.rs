//! Applications that dial a guest, and do not go on as they should.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vsock_testkit::host::Client;
use vsock_testkit::{Error, Guest, State};

use crate::hostile::{HOSTILE, House, done};

const PORT: u32 = 80;

/// A guest that accepts at a port, as the house is.
fn listening(house: &House) -> Guest {
    let mut guest = house.guest();
    guest.listen(PORT);
    house.works(&mut guest);
    guest
}

/// Ends when the device hangs up, having said nothing.
#[track_caller]
fn is_hung_up_on(mut stream: UnixStream, said: &[u8]) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    let said = String::from_utf8_lossy(&said[..said.len().min(40)]);
    assert!(
        end.is_ok() || end.as_ref().is_err_and(reset),
        "{said:?}: {end:?}"
    );
    assert!(answer.is_empty(), "{said:?} was answered");
}

#[test]
fn who_connect_and_leave() {
    let house = House::new();
    let mut guest = listening(&house);
    for round in 0..3000 {
        let mut client = UnixStream::connect(house.uds(HOSTILE)).unwrap();
        let line = [
            &b""[..],
            b"C",
            b"CONNECT 8",
            b"CONNECT 80\n",
            b"CONNECT 81\n",
        ][round % 5];
        // It may have been turned away already.
        let _ = client.write_all(line);
        if round % 20 == 0 {
            done(guest.step());
        }
    }
    done(guest.pump(Duration::from_millis(20)));
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_clients"]);
    house.ends_unharmed();
}

#[test]
fn who_redial_while_there_is_no_guest() {
    let house = House::new();
    for _ in 0..1500 {
        let mut client = UnixStream::connect(house.uds(HOSTILE)).unwrap();
        let _ = client.write_all(b"CONNECT 80\n");
        is_hung_up_on(client, b"CONNECT 80\n");
    }
    house.has_counted(&["refused_clients"]);
    house.ends_unharmed();
}

#[test]
fn who_say_half_a_line_and_no_more() {
    let house = House::new();
    let mut guest = listening(&house);
    let clients: Vec<_> = (0..400)
        .map(|_| {
            let mut client = UnixStream::connect(house.uds(HOSTILE)).unwrap();
            let _ = client.write_all(b"CONNECT 8");
            client
        })
        .collect();
    // One that means it gets through.
    let client = done(Client::dial(&house.uds(HOSTILE), PORT));
    done(guest.accept(PORT));
    drop(done(client.accepted()));
    house.is_at_rest();
    drop(clients);
    house.works_again(&mut guest);
    drop(guest);
    house.has_counted(&["refused_clients"]);
    house.ends_unharmed();
}

#[test]
fn who_say_a_line_byte_by_byte() {
    let house = House::new();
    let mut guest = listening(&house);
    let mut clients: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(house.uds(HOSTILE)).unwrap())
        .collect();
    for byte in b"CONNECT 80\n" {
        for client in &mut clients {
            client.write_all(&[*byte]).unwrap();
        }
    }
    for _ in 0..100 {
        done(guest.accept(PORT));
    }
    drop(clients);
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

#[test]
fn who_say_what_is_no_line() {
    let house = House::new();
    let guest = listening(&house);
    let long = vec![b'x'; 1 << 20];
    let digits = [&b"CONNECT "[..], &[b'8'; 1 << 20]].concat();
    let lines: [&[u8]; 14] = [
        b"\n",
        b"\r\n",
        b"\0\0\0\0\n",
        b"80\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 80 81\n",
        b"CONNECT 0x50\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\xfd\n",
        &long,
        &digits,
    ];
    for line in lines {
        let mut client = UnixStream::connect(house.uds(HOSTILE)).unwrap();
        client
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // Of a long one not all is taken.
        let _ = client.write_all(line);
        is_hung_up_on(client, line);
    }
    drop(guest);
    house.has_counted(&["refused_clients"]);
    house.ends_unharmed();
}

#[test]
fn who_want_ports_that_nobody_serves() {
    let house = House::new();
    let mut guest = listening(&house);
    for port in (0..2000)
        .chain([u32::MAX - 1, u32::MAX])
        .filter(|port| *port != PORT)
    {
        let client = done(Client::dial(&house.uds(HOSTILE), port));
        let refused = guest.refused();
        done(guest.wait_until("the guest to refuse", |guest| guest.refused() > refused));
        done(guest.step());
        done(client.expect_refusal(Duration::from_secs(5)));
    }
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

#[test]
fn who_come_by_thousands_at_once() {
    let house = House::new();
    let mut guest = listening(&house);
    let uds = house.uds(HOSTILE);
    let dial = std::thread::spawn(move || {
        let clients: Vec<_> = (0..2000).map(|_| done(Client::dial(&uds, PORT))).collect();
        let answers = clients.into_iter().map(Client::accepted);
        answers.collect::<Vec<_>>()
    });
    while !dial.is_finished() {
        done(guest.pump(Duration::from_millis(5)));
    }
    let mut accepted = 0;
    for answer in dial.join().unwrap() {
        match answer {
            Ok(_) => accepted += 1,
            // The guest has two seconds to answer, on a machine that is busy.
            Err(Error::Refused { .. }) => (),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(accepted > 1000, "{accepted} of 2000");
    done(guest.pump(Duration::from_millis(50)));
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

/// Connections to a guest, with the guest's ends of them.
fn dialled(
    house: &House,
    guest: &mut Guest,
    count: usize,
) -> Vec<(vsock_testkit::StreamId, vsock_testkit::host::HostStream)> {
    let dial = |guest: &mut Guest| {
        let client = Client::dial(&house.uds(HOSTILE), PORT)?;
        let stream = guest.accept(PORT)?;
        Ok((stream, client.accepted()?.0))
    };
    (0..count).map(|_| done(dial(guest))).collect()
}

#[test]
fn who_never_read() {
    let house = House::new();
    let mut guest = listening(&house);
    let open = dialled(&house, &mut guest, 20);
    for (stream, _) in &open {
        for _ in 0..10 {
            done(guest.write_some(*stream, &[1; 100_000]).map(drop));
        }
    }
    done(guest.expect_tx_returned());
    house.works(&mut guest);
    house.is_at_rest();
    drop(open);
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

#[test]
fn who_write_without_end_to_a_guest_that_does_not_read() {
    let house = House::new();
    let mut guest = listening(&house);
    let mut open = dialled(&house, &mut guest, 20);
    for (_, end) in &mut open {
        let bytes = vec![1; 4 << 20];
        let taken = done(end.write_until_blocked(&bytes, Duration::from_millis(20)));
        assert!(taken < 2 << 20, "{taken} bytes were taken");
    }
    done(guest.step());
    house.works(&mut guest);
    done(guest.pump(Duration::from_millis(50)));
    house.is_at_rest();
    drop(open);
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

#[test]
fn who_reset_in_mid_stream() {
    let house = House::new();
    let mut guest = listening(&house);
    for round in 0..10 {
        let open = dialled(&house, &mut guest, 20);
        let streams: Vec<_> = open.iter().map(|(stream, _)| *stream).collect();
        for (stream, mut end) in open {
            done(guest.write_some(stream, &[1; 50_000]).map(drop));
            if round % 2 == 0 {
                done(end.write_all(&[2; 20_000]));
            }
            // With bytes in it that were not read, closing is a reset.
            drop(end);
        }
        done(guest.wait_until("all streams to end", |guest| {
            streams.iter().all(|&stream| {
                let _ = guest.read_some(stream, usize::MAX);
                guest.stream(stream).at_end() || guest.stream(stream).state() == State::Closed
            })
        }));
    }
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}

#[test]
fn who_shut_down_in_every_order() {
    let house = House::new();
    let mut guest = listening(&house);
    for round in 0..200 {
        let (stream, end) = dialled(&house, &mut guest, 1).remove(0);
        for half in [round, round / 2, round / 4] {
            let _ = match half % 3 {
                0 => end.shutdown_write(),
                1 => end.shutdown_read(),
                _ => guest.write_some(stream, &[1; 1000]).map(drop),
            };
        }
    }
    done(guest.pump(Duration::from_millis(20)));
    house.works_again(&mut guest);
    drop(guest);
    house.ends_unharmed();
}
