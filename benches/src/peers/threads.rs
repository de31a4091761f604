//! A thread for each connection, and one for datagrams: the standard library alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::Result;

use super::BUFFER_BYTES;

/// Enough for the buffer and what is around it; thousands of the usual 2 MiB would be much.
const STACK_BYTES: usize = 256 * 1024;

pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let socket = UdpSocket::bind(address)?;
    thread::spawn(move || datagrams(&socket));
    loop {
        let (stream, _) = listener.accept()?;
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || connection(stream))?;
    }
}

fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
    }
}

fn datagrams(socket: &UdpSocket) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (len, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], peer)?;
    }
}
