"""The structs that Python declares are the compiler's."""
import os
import subprocess
import tempfile
import unittest

from expar import _capi

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class Layout(unittest.TestCase):
    def test_structs(self):
        lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <expar/expar.h>", "int main(void) {"]
        want = []
        for name, struct in _capi.STRUCTS.items():
            size = struct.spare.offset if hasattr(struct, "spare") else _capi.ctypes.sizeof(struct)
            room = _capi.ctypes.sizeof(struct)
            lines.append(f'printf("{name} %d\\n", sizeof({name}) >= {size} && sizeof({name}) <= {room});')
            want.append(f"{name} 1")
            for field, _ in struct._fields_:
                if field == "spare":
                    continue
                lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
                want.append(f"{name}.{field} {getattr(struct, field).offset}")
        lines.append("return 0; }")
        with tempfile.TemporaryDirectory() as folder:
            source, program = os.path.join(folder, "layout.c"), os.path.join(folder, "layout")
            with open(source, "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
            subprocess.run([os.environ.get("CC", "cc"), "-I", os.path.join(SOURCE, "include"), source, "-o", program], check=True)
            got = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
        self.assertEqual(got, want)


if __name__ == "__main__":
    unittest.main()
