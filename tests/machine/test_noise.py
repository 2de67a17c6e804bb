"""Remarks of Paddle's own are left out of the standard error, and nothing else is."""

import os
import sys

import pytest

from common.machine.noise import drop_native_remarks, drop_remarks


def test_lines_of_python_code(capsys):
    with pytest.raises(ValueError), drop_remarks(r'^=+( Modified FLAGS detected =+)?$|^FLAGS\('):
        sys.stderr.write('======= Modified FLAGS detected =======\n')
        sys.stderr.write("FLAGS(name='FLAGS_x', current_value=1, default_value=2)\n")
        sys.stderr.write('=======================================\n')
        sys.stderr.write('something else == 1\n')
        raise ValueError
    assert capsys.readouterr().err == 'something else == 1\n'


def test_lines_of_native_code(capfd):
    with pytest.raises(ValueError), drop_native_remarks('not support'):
        os.write(2, b'W1 Paddle does not support it!!!!!\nW2 the disk is full\n')
        raise ValueError
    os.write(2, b'after\n')
    assert capfd.readouterr().err == 'W2 the disk is full\nafter\n'


def test_without_a_standard_error(monkeypatch):
    def refuse(number):
        raise OSError

    monkeypatch.setattr(os, 'dup', refuse)
    with drop_native_remarks('x'):
        pass
