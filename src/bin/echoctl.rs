//! The companion that operates the daemon. All behavior is in the library: `echod::ctl`.

fn main() -> std::process::ExitCode {
    echod::echoctl_main()
}
