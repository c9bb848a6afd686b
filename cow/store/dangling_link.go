package store

import (
	"os"
	"path/filepath"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// maxLinks is the maximum number of symbolic links that are followed from one to the next.
const maxLinks = 40

// refuseDangling refuses a missing directory on whose path a symbolic link leads nowhere: its target
// may be a file system that is not mounted, and a directory cannot be created through it. A link
// that another user could have put there is left to Trusted. It is an ErrInvalid.
func refuseDangling(fsys vfs.FS, dir string) error {
	if _, real := fsys.(vfs.HostFS); !real {
		return nil
	}
	if untrusted, _ := way.Check(dir, pathOptions()); untrusted != nil {
		return nil
	}
	for path := dir; path != filepath.Dir(path); path = filepath.Dir(path) {
		fi, err := os.Lstat(path)
		if err != nil {
			continue
		}
		if fi.Mode().Type() != os.ModeSymlink {
			return nil
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			return nil
		}
		target := linkTarget(path)
		return finding.Invalidf("store %s: expected a directory, found the symbolic link %s, which leads nowhere: %s does not exist\nif a file system there is not mounted, mount it; else make the directory: mkdir -p %s",
			shell.Text(dir), shell.Text(path), shell.Text(target), shell.Path(target))
	}
	return nil
}

// linkTarget returns the first path on a chain of symbolic links that is not a link.
func linkTarget(path string) string {
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			// The directory may be behind links too: ".." is relative to where they lead.
			above, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				above = filepath.Dir(path)
			}
			to = filepath.Join(above, to)
		}
		path = to
	}
	return path
}
