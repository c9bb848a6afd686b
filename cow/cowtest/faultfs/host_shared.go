package faultfs

import (
	"io/fs"

	"cowblk/cow/vfs"
)

// SharedFS is an FS over a vfs.SharedFS. It also passes the calls of that interface to the hook.
type SharedFS struct {
	*FS
	under vfs.SharedFS
}

// OverShared returns fsys with a hook; nil: none yet.
func OverShared(fsys vfs.SharedFS, h Hook) SharedFS { return SharedFS{Over(fsys, h), fsys} }

// under returns the file below f.
func under(f vfs.File) vfs.File {
	switch f := f.(type) {
	case *hostFile:
		return f.File
	case *hostSharedFile:
		return f.SharedFile
	}
	return f
}

// Boot implements vfs.SharedFS.
func (x SharedFS) Boot() (string, error) {
	if _, _, err := x.ask(Call{Op: "boot"}); err != nil {
		return "", err
	}
	return x.under.Boot()
}

// Instance implements vfs.SharedFS.
func (x SharedFS) Instance(f vfs.File) (string, error) {
	if _, _, err := x.ask(Call{Op: "instance", Name: f.Name()}); err != nil {
		return "", err
	}
	return x.under.Instance(under(f))
}

// Changed implements vfs.SharedFS.
func (x SharedFS) Changed(f vfs.File) (int64, error) { return x.under.Changed(under(f)) }

// Evicted implements vfs.SharedFS.
func (x SharedFS) Evicted(f vfs.File) (bool, error) {
	fault, _, err := x.ask(Call{Op: "evicted", Name: f.Name()})
	if err != nil || fault.Cold || fault.Skip {
		return fault.Cold, err
	}
	return x.under.Evicted(under(f))
}

// Resident implements vfs.SharedFS.
func (x SharedFS) Resident(f vfs.File, off, n int64) (bool, error) {
	fault, _, err := x.ask(Call{Op: "resident", Name: f.Name(), Off: off, Len: n})
	if err != nil || fault.Cold || fault.Skip {
		return err == nil && !fault.Cold, err
	}
	return x.under.Resident(under(f), off, n)
}

// SyncFS implements vfs.SharedFS.
func (x SharedFS) SyncFS(f vfs.File) error {
	return x.do(Call{Op: "sync file system", Name: f.Name()},
		func() error { return x.under.SyncFS(under(f)) })
}

// MakeSharedDir implements vfs.SharedFS.
func (x SharedFS) MakeSharedDir(dir string) error { return x.under.MakeSharedDir(dir) }

// OpenShared implements vfs.SharedFS. Of the calls on the file only Reserve is passed.
func (x SharedFS) OpenShared(name string, flag int, perm fs.FileMode) (vfs.SharedFile, error) {
	if _, _, err := x.ask(Call{Op: "open shared", Name: name, Flag: flag}); err != nil {
		return nil, err
	}
	f, err := x.under.OpenShared(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &hostSharedFile{f, x}, nil
}

// hostSharedFile is an open file in memory of a SharedFS.
type hostSharedFile struct {
	vfs.SharedFile
	x SharedFS
}

func (f *hostSharedFile) Reserve(off, n int64) error {
	return f.x.do(Call{Op: "reserve", Name: f.Name(), Off: off, Len: n},
		func() error { return f.SharedFile.Reserve(off, n) })
}
