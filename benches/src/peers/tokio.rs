//! tokio: a task for each connection on its current-thread runtime. The base of all ratios.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Builder;

use super::BUFFER_BYTES;

pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(address).await?;
        tokio::spawn(datagrams(UdpSocket::bind(address).await?));
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(connection(stream));
        }
    })
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len]).await?;
    }
}

async fn datagrams(socket: UdpSocket) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (len, peer) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..len], peer).await?;
    }
}
