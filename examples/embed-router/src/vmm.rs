//! A virtual machine monitor, as far as vsock goes: a switch, a device for each guest, and
//! a service.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vsock_packet::{Cid, GuestCid, VsockAddr};
use vsock_router::{Groups, Limits, Request, Route, Router, Routers, Siblings, Switch};
use vsock_testkit::{Error, Guest, Memory, PacketRings, Ring, Setup, Transport, feature, queue};

use crate::device::Device;
use crate::echo::{Echo, EchoRoute, Inbox};
use crate::rx_port::RxPort;

/// The port of the host that echoes.
pub(crate) const ECHO_PORT: u32 = 7;

/// The VMM. Whoever notifies it of something has it do all there is to do.
pub(crate) struct Vmm {
    switch: Arc<Switch>,
    router: Arc<dyn Router>,
    devices: Vec<Device>,
    echo: Echo,
}

impl Vmm {
    /// A VMM without guests.
    pub(crate) fn new() -> Self {
        let switch = Arc::new(Switch::new(Limits::default()));
        let inbox = Arc::new(Inbox::default());
        let service = switch.service(Cid::HOST, Arc::<Inbox>::clone(&inbox));
        let echo = EchoRoute {
            at: VsockAddr::new(Cid::HOST, ECHO_PORT),
            service: Arc::clone(&service),
        };
        let routers = Routers::default()
            .then(echo)
            .then(Siblings(Arc::clone(&switch)));
        Self {
            switch,
            router: Arc::new(Talkative(routers)),
            devices: Vec::new(),
            echo: Echo {
                inbox,
                member: service,
                calls: HashMap::new(),
            },
        }
    }

    /// Runs until there is nothing to do.
    fn run(&mut self) {
        let now = Instant::now();
        let mut busy = true;
        while busy {
            busy = self.echo.run(now);
            for device in &mut self.devices {
                busy |= device.run(now);
            }
        }
    }

    /// A guest is started, with these rings in its memory.
    fn start(&mut self, guest: GuestCid, groups: &[&str], memory: &Memory, rings: &PacketRings) {
        let [tx, rx] = [queue::TX, queue::RX].map(|queue| device_queue(rings.ring(queue)));
        let memory = memory.map().clone();
        let port = Arc::new(RxPort::new(rx, memory.clone()));
        let groups: Groups = groups.iter().map(ToString::to_string).collect();
        match self.switch.join(guest, groups, port) {
            Ok(member) => self.devices.push(Device {
                guest,
                member,
                router: Arc::clone(&self.router),
                tx,
                memory,
            }),
            Err(error) => println!("{error}"),
        }
    }

    /// A guest is switched off.
    pub(crate) fn stop(&mut self, guest: GuestCid) {
        self.switch.leave(guest, Instant::now());
        self.devices.retain(|device| device.guest != guest);
        self.run();
    }
}

fn device_queue(ring: &Ring) -> Queue {
    // The rings of a `PacketRings` are of a size that a queue may have.
    let mut queue = Queue::new(ring.size()).unwrap_or_default();
    let [descriptors, available, used] = ring.addresses().map(|area| Some(area.0 as u32));
    queue.set_desc_table_address(descriptors, Some(0));
    queue.set_avail_ring_address(available, Some(0));
    queue.set_used_ring_address(used, Some(0));
    queue.set_ready(true);
    queue
}

/// A router that says what it is asked and what it answers.
struct Talkative<R>(R);

impl<R: Router> Router for Talkative<R> {
    fn route(&self, request: &Request) -> Route {
        let route = self.0.route(request);
        print!(
            "  {} {} asks for {}: ",
            request.socket_type, request.src, request.dst
        );
        match &route {
            Route::Member(member) if member.cid() == Cid::HOST => println!("to the echo service"),
            Route::Member(member) => println!("to the guest with CID {}", member.cid()),
            Route::Refuse(why) => println!("refused, since {why}"),
            other => println!("{other:?}"),
        }
        route
    }
}

/// What a guest reaches when it notifies its device: the VMM, in the same thread.
pub(crate) struct Bus(pub(crate) Rc<RefCell<Vmm>>);

impl Transport for Bus {
    fn kick(&mut self, _queue: usize) -> Result<(), Error> {
        self.0.borrow_mut().run();
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> Result<(), Error> {
        self.0.borrow_mut().run();
        Ok(())
    }
}

/// Starts a guest whose driver and sockets behave as Linux's do.
pub(crate) fn start_guest(
    vmm: &Rc<RefCell<Vmm>>,
    cid: GuestCid,
    groups: &[&str],
) -> Result<Guest<Bus>, Error> {
    let memory = Memory::one_region()?;
    let setup = Setup {
        memory: Some(memory.clone()),
        features: feature::VERSION_1,
        ..Setup::default()
    };
    Guest::over(cid.cid(), setup, |rings| {
        vmm.borrow_mut().start(cid, groups, &memory, rings);
        Bus(Rc::clone(vmm))
    })
}
