//! The client. All behavior is in the library: `echod::probe`.

fn main() -> std::process::ExitCode {
    echod::echoprobe_main()
}
