package load

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// threadTime is the CPU time of the calling thread.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of the driver's thread: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// process measures the CPU time of a process, from one goroutine.
type process struct {
	pid    int
	method func(pid int) (time.Duration, error)
	err    error // why the time is unknown
}

// newProcess selects a way to read a process's CPU time.
func newProcess(pid int) *process {
	p := &process{pid: pid}
	if pid <= 0 {
		p.err = fmt.Errorf("the process at the other end of the socket is unknown")
		return p
	}
	for _, m := range []func(int) (time.Duration, error){clockTime, schedTime, statTime} {
		if _, p.err = m(pid); p.err == nil {
			p.method = m
			return p
		}
	}
	return p
}

// cpuTime returns the CPU time of all threads; after an error, which err keeps, 0.
func (p *process) cpuTime() time.Duration {
	if p.err != nil {
		return 0
	}
	t, err := p.method(p.pid)
	p.err = err
	return t
}

// clockTime reads the process's CPU clock, in nanoseconds, including threads that have ended. The
// clock ID is computed as in clock_getcpuclockid(3). Any process's clock may be read.
func clockTime(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// schedTime adds the times of the existing threads, in nanoseconds.
func schedTime(pid int) (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d: no scheduler statistics", pid)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue // the thread has just ended
		}
		if err != nil {
			return 0, err
		}
		text, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// statTime reads /proc/PID/stat: user and system time in ticks of 10 ms.
func statTime(pid int) (time.Duration, error) {
	file := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	// The second field is a name in parentheses, of any characters.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3 // proc_pid_stat(5) counts from 1
	if len(fields) <= stime {
		return 0, fmt.Errorf("%s: %d fields", file, len(fields)+2)
	}
	var ticks int64
	for _, i := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
