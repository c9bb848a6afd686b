package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Libvirtd is a private libvirt daemon: its state directories are empty and separate from the
// machine's. Everything that it starts ends with it.
type Libvirtd struct {
	*Process
	URI string
}

// libvirtdScript runs the daemon in mount and PID namespaces of its own, with its own state
// directories. $1 is the directory of its socket.
const libvirtdScript = `
set -e
for dir in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
	mount -t tmpfs libvirt $dir
done
cat >/etc/libvirt/libvirtd.conf <<CONF
unix_sock_dir = "$1"
auth_unix_ro = "none"
auth_unix_rw = "none"
CONF
cat >/etc/libvirt/qemu.conf <<CONF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
CONF
# The first process of a PID namespace must reap what daemons leave: wait does.
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid &
wait $!
`

// StartLibvirtd starts the daemon with its socket in dir and waits until it answers.
func StartLibvirtd(ctx context.Context, dir string) (*Libvirtd, error) {
	args := []string{"--mount", "--pid", "--mount-proc", "--fork", "--kill-child"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-root-user")
	}
	cmd := exec.Command("unshare", append(args, "sh", "-c", libvirtdScript, "libvirtd", dir)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	p, err := StartProcess("libvirtd", cmd)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "libvirt-sock")
	if err := p.waitListening(ctx, socket); err != nil {
		p.Kill()
		return nil, err
	}
	return &Libvirtd{Process: p, URI: "qemu:///system?socket=" + socket}, nil
}

// Virsh runs one virsh command and returns its output.
func (l *Libvirtd) Virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", l.URI},
		args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("virsh %s: %w\n%s--- libvirtd printed\n%s", strings.Join(args, " "),
			err, stderr.String(), l.Output())
	}
	return strings.TrimSpace(stdout.String()), nil
}
