//! Nothing on the path of a message allocates: a whole worker on a real driver, counted.
//!
//! A binary of its own, because its allocator counts, by thread. The worker turns in a thread of
//! its own; the clients are in the test's.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use socket2::{SockRef, Socket, Type};

use echod::internals::socket::{self, Binding};
use echod::internals::{
    Access, BUFFER_BYTES, Command, Completion, Counters, Driver, Envelope, Epoll, Gate, Intake,
    ListenerId, Mailbox, Op, Permits, Reply, Settings, SocketId, SocketKind, Source, SourcePorts,
    Timeouts, Totals, Uring, Waker, WhenFull, Worker,
};

/// How long anything may take before it is called broken. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Rounds of [`Clients::exchange`] before counting, so that what grows has grown.
const ROUNDS_BEFORE: usize = 100;

/// Rounds that are counted: some 10,000 messages.
const ROUNDS_COUNTED: usize = 1_250;

/// Datagrams in one round: one by one over UDP and Unix, then both at once.
const DATAGRAMS_PER_ROUND: usize = 4;

/// What moves in bulk, many times what the kernel's buffers hold.
const BULK_BYTES: usize = 1 << 20;

/// So little, for the worker to wait for its peer again and again.
const BULK_SOCKET_BUFFER_BYTES: usize = 32 << 10;

const MESSAGE: &[u8; 64] = &[b'm'; 64];

/// Reports that this machine allows no io_uring. Not with `eprintln!`: the test harness captures
/// that and drops it when the test passes.
fn not_tested(error: &io::Error) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("\nNOT TESTED: {test}: {error}\n");
    io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error");
}

#[test]
fn no_message_allocates_on_epoll() {
    no_message_allocates(Epoll::new);
}

#[test]
fn no_message_allocates_on_io_uring() {
    match Uring::new() {
        Ok(_) => no_message_allocates(Uring::new),
        Err(error) => not_tested(&error),
    }
}

#[test]
fn no_message_of_our_own_allocates_on_epoll() {
    no_message_of_our_own_allocates(Epoll::new);
}

#[test]
fn no_message_of_our_own_allocates_on_io_uring() {
    match Uring::new() {
        Ok(_) => no_message_of_our_own_allocates(Uring::new),
        Err(error) => not_tested(&error),
    }
}

/// Leased buffers: more of them than a socket takes at once, so that sends stall each time, and
/// datagrams.
fn no_message_of_our_own_allocates<D>(driver: fn() -> io::Result<D>)
where
    D: Driver<Socket = OwnedFd>,
{
    let mut driver = driver().expect("a driver");
    let (ours, mut peer) = UnixStream::pair().expect("a pair");
    let [socket, sink] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    ours.set_nonblocking(true).expect("it is open");
    socket.set_nonblocking(true).expect("it is open");
    let envelope = Envelope {
        source: Source::Inet(sink.local_addr().expect("it is bound")),
        size: 100,
        ..Envelope::EMPTY
    };
    let connection = driver.add_connection(ours.into(), vec![]);
    let socket = driver.add_datagram_socket(socket.into());
    let reader = thread::spawn(move || {
        let mut memory = vec![0; 64 << 10];
        while peer.read(&mut memory).expect("it is open") > 0 {}
    });

    const SENDS: usize = 16;
    let mut done = Vec::with_capacity(256);
    let mut stalls = 0;
    let mut send = || {
        for _ in 0..SENDS {
            let buffer = driver.lease(BUFFER_BYTES).expect("few are leased");
            driver.submit(Op::Send { connection, buffer });
        }
        let buffer = driver.lease(1000).expect("few are leased");
        driver.set_envelope(&buffer, &envelope);
        driver.submit(Op::SendTo { socket, buffer });
        let (mut sent, mut datagrams_sent) = (0, 0);
        while sent < SENDS * BUFFER_BYTES || datagrams_sent < 10 {
            driver.wait(None, &mut done).expect("it continues");
            for completion in done.drain(..) {
                match completion {
                    Completion::Sent { len, .. } => sent += len as usize,
                    Completion::DatagramSent { count, .. } => datagrams_sent += count,
                    Completion::Stalled { .. } => stalls += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    (0..ROUNDS_BEFORE).for_each(|_| send());
    let counted = measure(|| (0..ROUNDS_BEFORE).for_each(|_| send()));
    drop(driver);
    reader.join().expect("it saw the end");
    assert!(stalls > 0, "what waits is what may allocate");
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

fn no_message_allocates<D>(driver: fn() -> io::Result<D>)
where
    D: Driver<Socket = OwnedFd> + 'static,
{
    let folder = tempfile::tempdir().expect("a folder for the sockets");
    let mut service = Service::start(driver, folder.path());
    let mut clients = Clients::connect(&service, folder.path());
    for _ in 0..ROUNDS_BEFORE {
        clients.exchange();
    }
    clients.move_bulk();

    let before = service.end_phase();
    let start = service.totals();
    for _ in 0..ROUNDS_COUNTED {
        clients.exchange();
    }
    clients.move_bulk();
    let counted = service.end_phase();
    let end = service.totals();

    // To accept clients and make tables allocates: the counter counts.
    assert!(before.count_total > 0, "{before:?}");
    let datagrams = end.datagrams_received - start.datagrams_received;
    assert_eq!(datagrams as usize, ROUNDS_COUNTED * DATAGRAMS_PER_ROUND);
    let bytes = end.bytes_received - start.bytes_received;
    let exchanged = ROUNDS_COUNTED * 2 * DATAGRAMS_PER_ROUND * MESSAGE.len();
    assert_eq!(bytes as usize, exchanged + BULK_BYTES);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

/// A worker in its thread, whose allocations are counted in two phases.
struct Service {
    tcp: SocketAddr,
    udp: SocketAddr,
    waker: Waker,
    counters: Arc<Counters>,
    phases_over: Arc<AtomicUsize>,
    allocations: Receiver<AllocationInfo>,
    // Its end would be the worker's.
    _commands: Sender<Command<OwnedFd>>,
}

impl Service {
    fn start<D>(driver: fn() -> io::Result<D>, folder: &Path) -> Self
    where
        D: Driver<Socket = OwnedFd> + 'static,
    {
        let any = "127.0.0.1:0".parse().expect("an address");
        let tcp = socket::bind_inet(Type::STREAM, any, Binding::Exclusive).expect("a TCP socket");
        let udp = socket::bind_inet(Type::DGRAM, any, Binding::Exclusive).expect("a UDP socket");
        let stream = socket::bind_unix(Type::STREAM, &folder.join("stream")).expect("a socket");
        let datagram = socket::bind_unix(Type::DGRAM, &folder.join("datagram")).expect("a socket");
        shrink_buffers(&tcp);
        for socket in [&tcp, &stream] {
            socket::listen(socket.as_fd(), 16).expect("a listening socket");
        }
        let addresses = [&tcp, &udp]
            .map(|socket| socket::local_address(socket.as_fd()).expect("it is an inet socket"));

        let counters = Arc::new(Counters::default());
        let (commands, command_receiver) = channel();
        let listener = ListenerId(0);
        let configure = Command::Configure {
            listener,
            settings: settings(),
            gate: Arc::new(Gate::new(Permits::new(100, vec![]))),
            counters: Arc::clone(&counters),
        };
        commands.send(configure).expect("it is received below");
        let sockets = [
            (SocketKind::Stream, tcp),
            (SocketKind::Datagram, udp),
            (SocketKind::Stream, stream),
            (SocketKind::Datagram, datagram),
        ];
        for (number, (kind, socket)) in (0..).zip(sockets) {
            let add = Command::AddSocket {
                listener,
                id: SocketId(number),
                kind,
                socket,
            };
            commands.send(add).expect("it is received below");
        }

        let phases_over = Arc::new(AtomicUsize::new(0));
        let (allocation_sender, allocations) = channel();
        let (waker_sender, wakers) = channel();
        let phases = Arc::clone(&phases_over);
        thread::spawn(move || {
            let driver = driver().expect("a driver");
            let waker = driver.waker();
            waker.wake();
            waker_sender.send(waker).expect("the test waits for it");
            let mailbox = Mailbox {
                commands: command_receiver,
                reports: channel().0,
                control: Waker::new().expect("a waker"),
            };
            let mut worker = Worker::new(0, 1, Duration::ZERO, driver, mailbox);
            for phase in 0..2 {
                let info = measure(|| {
                    while phases.load(Ordering::SeqCst) == phase {
                        worker.turn().expect("a turn");
                    }
                });
                allocation_sender.send(info).expect("the test waits for it");
            }
        });
        Self {
            tcp: addresses[0],
            udp: addresses[1],
            waker: wakers.recv_timeout(PATIENCE).expect("the worker starts"),
            counters,
            phases_over,
            allocations,
            _commands: commands,
        }
    }

    /// Ends a phase; says what the worker allocated in it. Until the next message it does nothing.
    fn end_phase(&mut self) -> AllocationInfo {
        self.phases_over.fetch_add(1, Ordering::SeqCst);
        self.waker.wake();
        self.allocations
            .recv_timeout(PATIENCE)
            .expect("the worker keeps turning")
    }

    fn totals(&self) -> Totals {
        Totals::of([&*self.counters])
    }
}

/// As they are by default, with all the timeouts that there are.
fn settings() -> Settings {
    Settings {
        name: "counted".into(),
        reply: Reply::Echo,
        one_shot: false,
        timeouts: Timeouts {
            idle: Some(PATIENCE),
            lifetime: Some(10 * PATIENCE),
            write_stall: Some(PATIENCE),
        },
        when_full: WhenFull::Wait,
        max_per_source: Some(50),
        access: Access {
            allow: ["127.0.0.0/8".parse().expect("a network")].into(),
            deny: [].into(),
        },
        refuse_source_ports: SourcePorts::default(),
        intake: Intake::default(),
    }
}

fn shrink_buffers(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    socket
        .set_recv_buffer_size(BULK_SOCKET_BUFFER_BYTES)
        .expect("a receive buffer");
    socket
        .set_send_buffer_size(BULK_SOCKET_BUFFER_BYTES)
        .expect("a send buffer");
}

/// A client of each kind, and one that moves bulk.
struct Clients {
    each: [Socket; 4],
    bulk: TcpStream,
}

impl Clients {
    fn connect(service: &Service, folder: &Path) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        udp.connect(service.udp).expect("an address");
        let datagram = UnixDatagram::bind(folder.join("client")).expect("a socket");
        datagram
            .connect(folder.join("datagram"))
            .expect("the service");
        let stream = UnixStream::connect(folder.join("stream")).expect("the service");
        let tcp = || TcpStream::connect(service.tcp).expect("the service");
        let clients = Self {
            each: [tcp().into(), udp.into(), stream.into(), datagram.into()],
            bulk: tcp(),
        };
        for socket in &clients.each {
            be_patient(&SockRef::from(socket));
        }
        be_patient(&SockRef::from(&clients.bulk));
        shrink_buffers(&clients.bulk);
        clients
    }

    /// A message over each, one after the other; then one over each at once.
    fn exchange(&mut self) {
        for client in &mut self.each {
            send(client);
            receive(client);
        }
        self.each.iter_mut().for_each(send);
        self.each.iter_mut().for_each(receive);
    }

    /// Much more than the kernel's buffers hold, there and back.
    fn move_bulk(&mut self) {
        let bytes: Vec<u8> = (0..BULK_BYTES).map(|index| (index % 251) as u8).collect();
        let mut writer = self.bulk.try_clone().expect("a second handle");
        let mut echoed = vec![0; BULK_BYTES];
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&bytes).expect("all is taken"));
            self.bulk.read_exact(&mut echoed).expect("all comes back");
        });
        assert!(echoed == bytes, "as it was sent");
    }
}

fn be_patient(socket: &Socket) {
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
}

fn send(client: &mut Socket) {
    assert_eq!(client.send(MESSAGE).expect("it is sent"), MESSAGE.len());
}

/// Few bytes that are sent at once come at once, over a stream too.
fn receive(client: &mut Socket) {
    let mut bytes = [0; MESSAGE.len() + 1];
    let len = client.read(&mut bytes).expect("an answer");
    assert_eq!(bytes[..len], *MESSAGE);
}
