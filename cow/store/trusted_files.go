package store

import (
	"fmt"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// trustedFiles refuses a disk if another user could put other files in the place of a layer's map
// or data, or of its image: through the directory of a layer or image, through a symbolic link, or
// through the directory of a file that a table names. This process would read or write the other
// file, with its own rights. A base in place is only read, and the operator has named it. Missing
// files are accepted. It is an ErrInvalid.
func (s *Store) trustedFiles(m *Manifest) error {
	check := newFileChecker()
	defer check.Close()
	for i := range m.Layers {
		l := &m.Layers[i]
		if err := s.trustedFile(check, layerObject(l.UUID), s.layerFiles(l)...); err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
	}
	if m.Base == nil || m.Base.Image == "" {
		return nil
	}
	if err := s.trustedImage(check, m.Base.Image); err != nil {
		return fmt.Errorf("disk %q: %w", m.Name, err)
	}
	return nil
}

func newFileChecker() *way.FileChecker { return &way.FileChecker{Options: pathOptions()} }

// layerFiles returns the paths of a layer's files. Its checksums may be missing.
func (s *Store) layerFiles(l *Layer) []string {
	p := s.paths(l)
	return []string{p.Map, p.Data, s.path(layersDir, l.UUID.String(), checksumsFile)}
}

// trustedImage is trustedFiles for one image.
func (s *Store) trustedImage(check *way.FileChecker, name string) error {
	return s.trustedFile(check, fmt.Sprintf("image %q", name), s.path(imagesDir, name, imageFile),
		s.ImageData(name))
}

// trustedFile refuses files that another user can replace. what names their owner.
func (s *Store) trustedFile(check *way.FileChecker, what string, paths ...string) error {
	if path, untrusted := s.untrustedFile(check, paths); untrusted != nil {
		return finding.Invalidf(
			"%s: %s: expected a way to it that only %s can change, found %s: %s can lead this process to any file through it\n%s",
			what, shell.Text(path), trustedUsers(), untrusted, untrusted.WhoCanChange(),
			adviceFileWay())
	}
	return nil
}

// untrustedFile returns the first file that another user can replace, and the directory in which;
// nil: none.
func (s *Store) untrustedFile(check *way.FileChecker, paths []string) (string, *way.Untrusted) {
	if _, real := s.fs.(vfs.HostFS); !real {
		return "", nil
	}
	for _, path := range paths {
		if untrusted, _ := check.CheckFile(path); untrusted != nil { // the open reports the error
			return path, untrusted
		}
	}
	return "", nil
}

// untrustedFinding is trustedFile for a check; nil: none. In a store that is not trusted as a whole
// it would only repeat that.
func (c *checker) untrustedFinding(paths ...string) *finding.Finding {
	if c.s.trustedPath() != nil {
		return nil
	}
	path, untrusted := c.s.untrustedFile(c.files, paths)
	if untrusted == nil {
		return nil
	}
	return refused(path, "directories on the way to the file", "ones that only "+trustedUsers()+
		" can change",
		fmt.Sprintf("%s: %s can lead this process to any file through it", untrusted,
			untrusted.WhoCanChange()), adviceFileWay())
}

func adviceFileWay() string {
	return "put the file where only " + trustedUsers() +
		" can change the directories and links on the way to it"
}
