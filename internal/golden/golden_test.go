package golden

import "testing"

// recorder is a test that may fail without failing this one.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestCheck(t *testing.T) {
	t.Chdir(t.TempDir())
	*update = true
	Check(t, "sub/file.txt", "as it was\n")
	*update = false
	for text, differs := range map[string]bool{"as it was\n": false, "as it was": true, "": true} {
		r := &recorder{TB: t}
		if Check(r, "sub/file.txt", text); r.failed != differs {
			t.Errorf("%q differs: %v", text, r.failed)
		}
	}
}
