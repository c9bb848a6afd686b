package scale

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// client runs one build's commands on one store.
type client struct {
	ctx    context.Context
	binary string
	store  string
	tag    string // the tag to clone
}

// countedCalls lists the system calls on files. Those for threads and memory differ from run to
// run.
const countedCalls = "%file,read,write,pread64,pwrite64,preadv,pwritev,preadv2,pwritev2,fsync,fdatasync,getdents64,flock,fcntl,ftruncate,fallocate,fstat,fstatfs,lseek,ioctl,fadvise64,io_uring_setup,io_uring_enter"

func (c *client) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.ctx, name, args...)
	cmd.Env = append(os.Environ(), "COWBLK_STORE="+c.store)
	return cmd
}

func (c *client) run(args ...string) error {
	if out, err := c.command(c.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", c.binary, strings.Join(args, " "), err, out)
	}
	return nil
}

// calls returns the number of counted system calls that a command makes.
func (c *client) calls(args ...string) (float64, error) {
	report := filepath.Join(filepath.Dir(c.store), "strace")
	trace := append([]string{"-f", "-c", "-e", "trace=" + countedCalls, "-o", report, c.binary},
		args...)
	if out, err := c.command("strace", trace...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("strace %s: %w: %s", strings.Join(args, " "), err, out)
	}
	f, err := os.Open(report)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// % time, seconds, usecs/call, calls, errors (or nothing), name
		words := strings.Fields(lines.Text())
		if n := len(words); n >= 5 && words[n-1] == "total" {
			return strconv.ParseFloat(words[3], 64)
		}
	}
	return 0, fmt.Errorf("%s: expected a line of totals", report)
}

// time returns the duration of a command in milliseconds.
func (c *client) time(args ...string) (float64, error) {
	start := time.Now()
	err := c.run(args...)
	return float64(time.Since(start)) / float64(time.Millisecond), err
}

// golden makes the disk that is cloned, with one tag.
func (c *client) golden(size int64) error {
	c.tag = "golden@t0"
	if err := c.run("create", "golden", "--size", strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	return c.run("promote", "golden", "--tag", "t0")
}

// disks makes n clones.
func (c *client) disks(n int64) error {
	err := c.golden(gib)
	for i := int64(0); i < n && err == nil; i++ {
		err = c.run("create", fmt.Sprint("d", i), "--from", c.tag)
	}
	return err
}

// tags makes n tags; the last is cloned.
func (c *client) tags(n int64) error {
	err := c.golden(gib)
	for i := int64(1); i < n && err == nil; i++ {
		err = c.run("promote", "golden", "--tag", fmt.Sprint("t", i))
	}
	c.tag = fmt.Sprint("golden@t", n-1)
	return err
}

// step is one command of a row.
type step struct {
	name string
	args []string
}

// steps returns the measured commands in their order.
func (c *client) steps() []step {
	return []step{
		{"create --from TAG", []string{"create", "x", "--from", c.tag}},
		{"promote", []string{"promote", "x", "--tag", "a"}},
		{"promote again", []string{"promote", "x", "--tag", "b"}},
		{"info NAME", []string{"info", "x"}},
		{"check NAME", []string{"check", "x"}},
		{"completion", []string{"__complete", "info", "x"}},
		{"rollback", []string{"rollback", "--yes", "x@b"}},
		{"rm", []string{"rm", "--yes", "x"}},
	}
}
