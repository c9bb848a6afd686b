package report

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine describes the machine and the time of the run.
type Machine struct {
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	Memory     int64     `json:"memory"` // bytes
	Kernel     string    `json:"kernel"`
	FileSystem string    `json:"file_system"`
	System     string    `json:"system"`
	Go         string    `json:"go"`
	QEMU       string    `json:"qemu,omitempty"`
	Fio        string    `json:"fio,omitempty"`
	Revision   string    `json:"revision,omitempty"`
	Date       time.Time `json:"date"`
	LoadBefore string    `json:"load_before"` // over 1, 5 and 15 minutes
	LoadAfter  string    `json:"load_after"`
}

// Describe returns a description of this machine; dir is the directory of the run's files.
func Describe(dir, qsd, fio string) Machine {
	m := Machine{
		Cores: runtime.NumCPU(), Go: runtime.Version(),
		Date:       time.Now().UTC().Truncate(time.Second),
		CPU:        field("/proc/cpuinfo", "model name", ":"),
		System:     strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`),
		FileSystem: fileSystem(dir), LoadBefore: Load(),
		QEMU: firstLine(qsd, "--version"), Fio: firstLine(fio, "--version"),
		Revision: firstLine("git", "describe", "--always", "--dirty", "--tags"),
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return m
}

// Load returns the load average of 1, 5 and 15 minutes.
func Load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// Busy returns a warning if the machine was busy when the run began, else "".
func (m Machine) Busy() string {
	var load float64
	if _, err := fmt.Sscan(m.LoadBefore, &load); err != nil || load < BusyLoad {
		return ""
	}
	return fmt.Sprintf("The machine was busy when the run began (load average %s on %d cores). Client and server need a core each: the figures are unreliable, and so are the ratios.",
		m.LoadBefore, m.Cores)
}

// BusyLoad is the load average of the last minute from which on a machine is busy.
const BusyLoad = 0.5

// field returns the value of the first line of a file that has this name.
func field(path, name, separator string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// firstLine returns the first line of a program's output, or "" if it cannot be run.
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// fileSystem returns the type of a directory's file system and its device.
func fileSystem(dir string) string {
	out := firstLine("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE,OPTIONS", "--target",
		dir)
	f := strings.Fields(out)
	if len(f) < 3 {
		return out
	}
	return fmt.Sprintf("%s on %s (%s)", f[0], f[1], f[2])
}

// String describes the machine in one paragraph.
func (m Machine) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %d cores of %s, %.0f GiB; Linux %s; %s; %s; %s",
		m.Date.Format("2006-01-02 15:04 MST"), m.Cores, m.CPU, float64(m.Memory)/(1<<30), m.Kernel,
		m.System, m.FileSystem, m.Go)
	for _, s := range []string{m.QEMU, m.Fio} {
		if s != "" {
			b.WriteString("; " + s)
		}
	}
	if m.Revision != "" {
		b.WriteString("; cowblk " + m.Revision)
	}
	fmt.Fprintf(&b, "; load average before: %s, after: %s", m.LoadBefore, m.LoadAfter)
	return b.String()
}
