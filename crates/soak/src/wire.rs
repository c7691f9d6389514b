//! One end of a connection, whoever has it: an application in a guest, or on the host.

use vsock_packet::{Op, ShutdownFlags, SocketType};
use vsock_testkit::{Error, State, Stream, StreamId, queue};

use crate::host::{Dialing, HostSocket};
use crate::vm::Vm;

/// What reading gave.
#[derive(Debug)]
pub(crate) enum Given {
    Bytes(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// The other end says no more.
    End,
    /// The connection is broken.
    Error(String),
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Taken {
    /// So many bytes were taken.
    Bytes(usize),
    /// The connection takes no more.
    Error(String),
}

/// How far an end is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    Waits,
    Done,
    Refused,
}

/// An end.
#[derive(Debug)]
pub(crate) enum Wire {
    Guest {
        vm: usize,
        /// The life of the guest that it is from.
        life: u64,
        id: StreamId,
        socket_type: SocketType,
    },
    Host(HostSocket),
}

impl Wire {
    /// Whether its guest is gone, or has forgotten it.
    pub(crate) fn has_vanished(&self, vms: &[Vm]) -> bool {
        matches!(self, Self::Guest { vm, life, .. } if vms[*vm].life != *life)
    }

    /// Whether its guest, if it has one, does anything now.
    pub(crate) fn is_served(&self, vms: &[Vm]) -> bool {
        match self {
            Self::Guest { vm, .. } => vms[*vm].is_up(),
            Self::Host(_) => true,
        }
    }

    pub(crate) fn opening(&mut self, vms: &mut [Vm]) -> Opening {
        match self {
            Self::Guest { vm, id, .. } => match vms[*vm].guest() {
                Some(guest) if guest.stream(*id).state() == State::Connecting => Opening::Waits,
                Some(guest) if guest.stream(*id).was_reset() && guest.stream(*id).rx_cnt() == 0 => {
                    // Accepted and reset at once looks the same, and is no different.
                    Opening::Refused
                }
                _ => Opening::Done,
            },
            Self::Host(socket) => match socket.dialing() {
                Dialing::Waits => Opening::Waits,
                Dialing::Done => Opening::Done,
                Dialing::Refused => Opening::Refused,
            },
        }
    }

    pub(crate) fn read(&mut self, vms: &mut [Vm], most: usize) -> Result<Given, Error> {
        let (guest, id, socket_type) = match self {
            Self::Host(socket) => return Ok(socket.read(most)),
            Self::Guest {
                vm,
                id,
                socket_type,
                ..
            } => match vms[*vm].guest() {
                Some(guest) => (guest, *id, *socket_type),
                None => return Ok(Given::Nothing),
            },
        };
        let bytes = match socket_type {
            SocketType::Stream => guest.read_some(id, most)?,
            SocketType::Seqpacket => guest.read_message(id)?.unwrap_or_default(),
        };
        if !bytes.is_empty() {
            return Ok(Given::Bytes(bytes));
        }
        let stream = guest.stream(id);
        // Of messages, one that is not whole will never be.
        let has_more = socket_type == SocketType::Stream && stream.unread() > 0;
        Ok(match (has_more, stream.at_end()) {
            (true, _) | (_, false) => Given::Nothing,
            _ if stream.peer_shutdown().contains(ShutdownFlags::SEND) => Given::End,
            _ => Given::Error("reset".to_owned()),
        })
    }

    pub(crate) fn write(&mut self, vms: &mut [Vm], bytes: &[u8]) -> Result<Taken, Error> {
        let (guest, id, socket_type) = match self {
            Self::Host(socket) => return Ok(socket.write(bytes)),
            Self::Guest {
                vm,
                id,
                socket_type,
                ..
            } => match vms[*vm].guest() {
                Some(guest) => (guest, *id, *socket_type),
                None => return Ok(Taken::Bytes(0)),
            },
        };
        let taken = match socket_type {
            SocketType::Stream => guest.write_some(id, bytes)?,
            SocketType::Seqpacket if guest.write_message(id, bytes)? => bytes.len(),
            SocketType::Seqpacket => 0,
        };
        Ok(if taken == 0 && guest.stream(id).is_shut() {
            Taken::Error("shut".to_owned())
        } else {
            Taken::Bytes(taken)
        })
    }

    /// Says that no more will be said.
    pub(crate) fn half_close(&mut self, vms: &mut [Vm]) -> Result<(), Error> {
        match self {
            Self::Host(socket) => socket.half_close(),
            Self::Guest { vm, id, .. } => {
                if let Some(guest) = vms[*vm].guest() {
                    guest.shutdown(*id, ShutdownFlags::SEND)?;
                }
            }
        }
        Ok(())
    }

    /// Closes a guest's end; that of a host application is closed by being dropped. `true`
    /// when it is over.
    pub(crate) fn close(&mut self, vms: &mut [Vm]) -> Result<bool, Error> {
        let Self::Guest { vm, id, .. } = self else {
            return Ok(true);
        };
        let Some(guest) = vms[*vm].guest() else {
            return Ok(true);
        };
        guest.start_close(*id)?;
        let is_over = guest.stream(*id).state() == State::Closed;
        if is_over {
            guest.drop_unread(*id);
        }
        Ok(is_over)
    }

    /// What its guest makes of it, for whoever looks for a reason.
    pub(crate) fn view(&self, vms: &mut [Vm]) -> String {
        let Self::Guest { vm, id, .. } = self else {
            return String::new();
        };
        let vm = &mut vms[*vm];
        let cid = vm.cid;
        let Some(guest) = vm.guest() else {
            return format!("  VM {cid} is {:?}\n", vm.state);
        };
        let (rings, behaviour) = (guest.rings(), &guest.behaviour);
        let held = [queue::RX, queue::TX].map(|queue| rings.ring(queue).in_flight());
        format!(
            "  VM {cid}: {}\n    RX and TX chains at the device: {held:?}, {behaviour:?}\n",
            summary(guest.stream(*id))
        )
    }

    /// The bytes that the device has told a guest to have passed on.
    pub(crate) fn acknowledged(&self, vms: &mut [Vm]) -> Option<u64> {
        let Self::Guest { vm, id, .. } = self else {
            return None;
        };
        let stream = vms[*vm].guest()?.stream(*id);
        Some(u64::from(stream.tx_cnt().wrapping_sub(stream.in_flight())))
    }
}

fn summary(stream: &Stream) -> String {
    let came = [
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Shutdown,
        Op::Rst,
    ];
    let came = came
        .map(|op| format!("{op} {}", stream.came(op)))
        .join(", ");
    format!(
        "{} to {}: {:?}, reset: {}, peer shutdown: {:?}, sent {}, credit {}, in flight {}, \
         received {}, unread {} in {} packets; came: {came}",
        stream.local(),
        stream.peer(),
        stream.state(),
        stream.was_reset(),
        stream.peer_shutdown(),
        stream.tx_cnt(),
        stream.credit(),
        stream.in_flight(),
        stream.rx_cnt(),
        stream.unread(),
        stream.unread_packets(),
    )
}
