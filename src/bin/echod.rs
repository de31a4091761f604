//! The daemon. All behavior is in the library: `echod::daemon`.

fn main() -> std::process::ExitCode {
    echod::echod_main()
}
