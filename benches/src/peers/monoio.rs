//! monoio: a task for each connection on its io_uring driver. TCP alone.

use std::net::SocketAddr;

use anyhow::Result;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

use super::BUFFER_BYTES;

/// Room in the ring for everything that is under way at once.
const RING_ENTRIES: u32 = 4096;

pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES);
    let mut runtime = builder.build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(address)?;
        loop {
            let (stream, _) = listener.accept().await?;
            monoio::spawn(connection(stream));
        }
    })
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (result, filled) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        let (result, written) = stream.write_all(filled).await;
        result?;
        buffer = written;
        buffer.clear();
    }
}
