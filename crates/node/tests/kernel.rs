fn main() {
    portolan_node::try_reexec();
}
