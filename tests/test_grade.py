"""
Run: python -m pytest tests/test_grade.py

Pairs of (gold, prediction) that are equal or are not, and processes that hang, die or eat memory.
"""
import os
import random
import subprocess
import sys
import time

import pytest

from tasks import math_equal
from tasks.workers import Workers, judge

RIGHT = [
    ("5", "5"), ("5", "5.0"), ("5", r"\frac{10}{2}"), ("5", "x=5"), (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{3}{2}", r"1\frac{1}{2}"), (r"\frac{3}{2}", "1 1/2"), ("1000", "1,000"),
    ("1,000", "1000"), ("10000", "10{,}000"), (r"10,\!000", "10000"), (r"90^\circ", "90"), ("90", r"90^{\circ}"),
    ("90", "90°"), ("90", r"90\text{ degrees}"), ("5", r"5\text{ cm}"), (r"5\text{ cm}", "5"),
    (r"5\text{ cm}", r"5\,\text{centimeters}"), (r"15\mbox{ cm}^2", r"15\text{ square centimeters}"), ("5", "5 cm"),
    ("5", "5 dollars"), (r"\$36", "36"), ("36", r"\$36"), ("36", "$36"), (r"\$36", r"36\text{ dollars}"),
    (r"50\%", "50"), (r"50\%", r"50\%"), (r"50\%", r"\frac{1}{2}"), ("4210_5", "4210_{5}"), ("24_{10}", "24"),
    ("(1,2)", "(1,2)"), ("(1,2)", r"\left( 1, 2 \right)"), ("1,2", "2,1"), ("1,2", r"\{2,1\}"),
    ("1,2", r"1 \text{ and } 2"), ("1200", r"1.2\times 10^3"), ("1200", "1.2e3"), ("4.5e33", r"4.5\times10^{33}"),
    (r"\text{Evelyn}", "Evelyn"), (r"\text{even}", "Even"), ("x=5", "5"), ("x=5", "x=5.0"), ("y = 10x-4", "10x - 4"),
    ("5000000", "5 million"), (r"5\text{ million}", "5000000"), (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\pi}{2}", r"0.5\pi"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"), ("x^2+2x+1", "(x+1)^2"),
    (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{pmatrix} \frac12 \\ 3 \end{pmatrix}"),
    (r"(-\infty,-5]\cup[5,\infty)", r"[5, \infty) \cup (-\infty, -5]"), (r"x \in [-2,7]", "[-2,7]"),
    ("[-2,7]", r"x\in[-2,7]"), (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}, 1 - \sqrt{19}"), ("3:1", "3 : 1"),
    ("100, 200", "100,200"), ("-1./3", r"-\frac13"), ("+2", "2"), (r"\text{(C)}", "C"), (r"\text{C}", "C"),
    ("3", "03"), ("2^{10}", "1024"), ("1024", "2^{10}"), ("5", "3+2"), (r"0.56 = 56\%", "0.56"),
    (r"0.56 = 56\%", r"56\%"), (r"k \geqslant 2", r"k\ge 2"), ("f(x)=x", "x"), (r"f(x)=\frac{1}{x}", "1/x"),
    (r"18\text{ ways.}", "18"), ("6 - 5i", "6-5i"), ("6-5i", "-5i+6"), (r"\frac{12}{5,\!525}", "12/5525"),
    (r"11\sqrt2", r"11\sqrt{2}"), (r"\dfrac{9}{7}", "9/7"), ("5", r"\boxed{5}"), ("5", "The answer is 5"),
    ("-5", r"-\$5"), ("17.5%", r"17.5\%"), (r"8 \%", "8%"), ("2", r"\sqrt{4}"), ("1/2", ".5"), ("5", "(5)"),
    ("0", "-0"), ("5", r"5\text{ cm}^2"), ("5", "|5|"), (r"\frac{3}{4}", r"\frac34"), (r"\frac34", "0.75"),
    ("10^{-5}", "1e-5"), ("1e-5", "0.00001"), ("5", "5^{1}"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("6", r"2 \cdot 3"), ("6", r"2\times 3"), (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"-\frac{1}{2}", r"\frac{1}{-2}"),
    (r"\text{Tuesday}", "tuesday"), (r"3\frac{1}{2}", "3.5"), ("3.5", r"3\frac12"), ("1{,}000{,}000", "10^6"),
    (r"12\frac{3}{5}", r"12 \frac{3}{5}"), (r"12\frac{3}{5}", "12.6"), (r"12\frac{3}{5}", r"\frac{63}{5}"),
    (r"\frac{5}{2}", r"2\tfrac{1}{2}"), (r"\frac{5}{2}", r"2 \dfrac12"), ("300000000", r"3 \times 10^8"),
    ("300000000", r"3\cdot 10^{8}"), ("300000000", "3e8"), ("3e8", "3E8"), ("1234.5", "1,234.5"),
    ("5", r"5\,\mathrm{cm}"), ("5", r"5~\text{cm}"), ("5", r"\text{5 apples}"), (r"\$36", r"\$36.00"),
    ("36", r"\$36.00"), (r"10\%", r"10 \%"), (r"10\%", r"10 \text{ percent}"), (r"10\%", "10"),
    (r"5\text{ miles}", "5 miles"), (r"5\text{ miles}", r"5\text{ mi}"), ("(1,2)", "(1.0, 2)"),
    (r"(-\infty,3]", "(−∞, 3]"), ("5", "f(2)=5"), (r"x \le 5", r"x\leq 5"), ("x<5", "5>x"), ("e", "e^1"),
    ("0.1", r"\frac{1}{10}"), (".1", "0.10"), ("1", r"0.\overline{9}"), (r"\frac13", r"0.\overline{3}"),
    ("5", r"\frac{25}{5}"), ("5", r"\sqrt{25}"), ("100!", "100!"), (r"\binom{2n}{n}", r"\binom{2n}{n}"),
    (r"\frac{x+1}{2}", "(x+1)/2"), (r"\frac{x+1}{2}", "0.5x+0.5"), (r"\sin x", r"\sin(x)"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"), ("3+4i", "4i+3"), ("5", r"5 \quad"), ("5", "5\\\\"), ("5", r"\,5\;"),
    ("5", r"\mathbf{5}"), ("5", r"\displaystyle 5"), ("3,4", "x=3,y=4"), ("5", r"x = \boxed{5}"),
    ("A", r"\textbf{(A)}"), ("A", "(A)"), ("-2", "+-2"), ("5", "--5"), ("5", "5/1"), ("1/2", r"1\div2"),
    (r"\frac{1}{2}", r"\frac{1}{2}\text{ hours}"), ("5", r"5^\circ C"), (r"25^\circ C", "25"),
    (r"3 \text{ and } 4", "4, 3"), ("1000000", "1{,}000{,}000"), ("1000000", "10^6"),
    ("1000000", r"1 \text{ million}"), ("5", r"\left|-5\right|"), (r"\text{(-1,2)}", "(-1,2)"),
    (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("5", "05"), ("27.0", "27"),
    ("025", "25"), (r"\sqrt[3]{8}", "2"), (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"), ("0", "0.0"), ("0", "-0"),
    (r"3\sqrt{2}", r"\sqrt{18}"), (r"12 \text{ cm}^2", r"12 \text{ square cm}"), ("5", "$5$ dollars"),
    ("70", r"70^{\circ}"), (r"70^{\circ}", r"70 \text{ degrees}"), ("6", r"2 \times 3"), ("5", r"5\times 10^0"),
    ("y=2x+1", "2x+1"), ("y=2x+1", "y=1+2x"), ("2x+y=3", "y=3-2x"), ("1,-2", r"-2 \text{ and } 1"),
    (r"3 \pm \sqrt 2", r"3+\sqrt2,3-\sqrt2"), ("p^2-q", "p^{2} - q"),
    ("xy", "yx"), ("6m", "6 m"), ("2x+1", "1+2x"), ("5", "5."), (r"\approx 8.24", "8.24"),
]
WRONG = [
    ("5", "6=5"), ("5", "1=2=3=4=5"), ("5", "4=x=5"), ("5", "5,5"), ("5", "[5,5]"), ("5", "1,2,3,4,5"),
    ("5", r"5 \text{ or } 6"), ("5", "5 or 6"), ("5", r"\{5,6\}"), ("5", r"\{5\}"), ("5", r"\pm5"), ("5", r"\pm 5"),
    ("5", r"5\%"), ("5", "5%"), ("5", r"5\text{ percent}"), ("5", "9^{9^{9^9}}"), ("5", "100000000!"),
    ("5", r"\binom{10^9}{5\cdot10^8}"), ("5", r"\sum_{i=1}^{10^9} i"), ("5", r"\int_0^1 \sin(x^{x^x})dx"),
    ("5", r"\text{the correct answer}"), ("5", "answer"), ("5", r"\infty"), ("5", "1/0"), ("5", "0/0"), ("5", "nan"),
    ("5", "1e400"), ("1/3", "0.333333"), (r"\frac{1}{3}", "0.333333"), (r"5\text{ cm}", r"5\text{ m}"),
    ("0.5", r"50\%"), ("4210_5", "4210"), ("4210_5", "4210_6"), ("203", "203_7"), ("84", "1010100_2"),
    ("(1,2)", "[1,2)"), ("[1,2)", "(1,2)"), ("1,2", "(1,2)"), ("(1,2)", "(2,1)"), ("x=5", "y=5"),
    ("10x-4y=0", "10x-4y"), ("5", "5 million"), (r"\sqrt{2}", "1.41421356237310"), ("x^2+2x+1", "(x+1)^2+1"),
    (r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \end{pmatrix}"),
    (r"(-\infty,-5]\cup[5,\infty)", r"[5, \infty) \cup (-\infty, -5)"), (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}"),
    ("55", "5 5"), ("5", "５"), ("5", ""), ("5", '5\x00'), ("5", '\ud800'), ("5", "5 or more"), ("5", r"\text{not }5"),
    ("5", r"5\text{ is wrong}"), ("i", "-i"), ("x", "y"), ("5", "5.0000001"), ("5", "6-1=5"),
    ("5", "5=5"), ("5", "=5"), ("5", "[5]"), ("(5,6)", "5,6"), ("5", r"\frac{5}{0}"), ("12", "12:00"), ("5", "5!"),
    ("120", "5!"), ("5", r"5\ne 6"), ("5", ">5"), ("5", r"\ge 5"), ("5", r"\approx 5"), ("4", "4, 4"), ("2", "2x"),
    ("60", r"1\text{ hour}"), (r"60\text{ minutes}", r"1\text{ hour}"), ("A", "a"), ("even", "odd"),
    ("10", "10 percent"), (r"5\text{ miles}", r"5\text{ km}"), ("(1,2)", r"\langle 1,2\rangle"), ("5", "5 < 6"),
    ("x<5", r"x\le 5"), ("101_2", r"101_{\text{two}}"), ("5", "5i"), ("5", "5e"), ("2", "2.0000000000000001"),
    ("1", "0.999999999"), (r"\pi", "3.14159265358979"), (r"\pi", r"\frac{22}{7}"), (r"2\pi", "6.283185307179586"),
    ("(3,4)", "x=3, y=4"), ("5", r"\text{x = }5"), ("5", r"\{ 5 }"), ("A", "B"), ("7", r"\text{seven}"),
    (r"120^\circ", r"\frac{2\pi}{3}"), ("[0,1]", "[0,1)"), ("[0,1]", "(0,1)"),
    ("5", "5 and 6"), (r"12 \text{ cm}", r"12 \text{ cm}^2"), ("5", "x = 5 = y"), ("5", "5 = x"), ("5", "x=y=5"),
    ("y=2x+1", "y=2x+2"), ("5", "NaN"), ("5", "inf"), ("5", "True"), ("5", "None"),
    ("6m", "6"), ("6", "6m"), (r"\frac{37}{4} m", r"\frac{37}{4}"), ("2x", "2"), ("xy", "xz"),
]

SAME_NUMBER = [     # other spellings of one number, however small or large
    (r"\frac{1}{2^{60}}", "2^{-60}"), (r"1.05\times 10^{-34}", "1.05e-34"),
    (r"6.63\times 10^{-34}", r"6.63 \times10^{-34}"), (r"6.63\times 10^{-34}", r"6.63\cdot 10^{-34}"),
    (r"6.63\times 10^{-34}", "6.63e-34"), (r"6.63\times 10^{-34}", "6.63E-34"),
    (r"6.63\times 10^{-34}", "6.63 * 10^-34"), (r"6.63\times 10^{-34}", "6.63*10^(-34)"),
    (r"6.63\times 10^{-34}", "6.63 x 10^{-34}"), (r"6.63\times 10^{-34}", "6.63×10⁻³⁴"),
    (r"6.63\times 10^{-34}", r"6.63\times{10}^{-34}"), (r"6.63\times 10^{-34}", r"66.3\times 10^{-35}"),
    (r"6.63\times 10^{-34}", r"\frac{6.63}{10^{34}}"), (r"6.63\times 10^{-34}", r"6.63\,\times\,10^{-34}"),
    ("e^{-50}", r"\frac{1}{e^{50}}"), ("10^{20}", "100000000000000000000"), (r"\frac{1}{1024}", "2^{-10}"),
    (r"\frac{1}{52!}", r"\frac{53}{53!}"), (r"\binom{100}{50}2^{-100}", r"\frac{\binom{100}{50}}{2^{100}}"),
    (r"\sqrt{10^{40}+1}", r"\sqrt{1+10^{40}}"), ("1-2^{-60}", r"\frac{2^{60}-1}{2^{60}}"),
    ("(2^{-60},1)", r"(\frac{1}{2^{60}},1)"), (r"\{2^{-60}\}", r"\{\frac{1}{2^{60}}\}"),
    ("1+2^{-60}i", r"1+\frac{i}{2^{60}}"), (r"e^{i\pi}", "-1"), (r"e^{i\pi/3}", r"\frac{1}{2}+\frac{\sqrt{3}}{2}i"),
    ("2^{-60}x", r"\frac{x}{2^{60}}"), ("x>2^{-60}", r"x>\frac{1}{2^{60}}"),
    (r"\sqrt{\frac{1}{n}}", r"\frac{1}{\sqrt{n}}"), (r"\sin 30^\circ", r"\frac12"), (r"\frac12", r"\sin 30^\circ"),
    (r"\frac{\sqrt3}{2}", r"\cos(30^{\circ})"), (r"2\sin 30^\circ", "1"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"), (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"\frac{\pi}{4}", r"\arctan 1"), ("x^2+2x+1", "(x+1)^2"), (r"\sqrt{\frac{a}{b}}", r"\frac{\sqrt a}{\sqrt b}"),
    (r"10^{-20}\%", r"10^{-20}\%"), ("y=x+2^{-60}", "x-y+2^{-60}=0"), ("10^{34}", "10^34"),
    (r"\begin{pmatrix}2^{-60}\\1\end{pmatrix}", r"\begin{pmatrix}\frac{1}{2^{60}}\\1\end{pmatrix}"),
    (r"1.6 \times 10^{-19}", r"1.60\times 10^{-19} \text{ C}"), ("x^{3/2}", r"x\sqrt{x}"),
    (r"\sqrt{x^2+1}", "(x^2+1)^{1/2}"), ("100!", r"100\cdot 99!"), (r"6\times 10^{23}", r"6.0\times 10^{23}"),
]
OTHER_NUMBER = [    # math-verify calls most of these equal: its tolerance of 1e-15 is absolute
    (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}"), (r"\frac{1}{20!}", r"\frac{1}{19!}"), ("e^{-40}", "e^{-41}"),
    (r"6.63\times 10^{-34}", r"1.05\times 10^{-34}"), (r"6.63\times 10^{-34}", r"6.63\times 10^{-33}"),
    ("1.6e-19", "9.1e-31"), ("10^{-20}", "0"), ("0", "10^{-20}"), ("0", r"\frac{1}{2^{70}}"), ("0", "e^{-50}"),
    (r"\sqrt{10^{40}+1}", "10^{20}"), (r"\sqrt{10^{998}+1}", "10^{499}"), ("1", "1-2^{-60}"),
    ("1-2^{-60}", "1-2^{-70}"), ("1", "(1-2^{-60})^{2}"), (r"\frac{1}{52!}", r"\frac{2}{52!}"),
    (r"\binom{100}{50}2^{-100}", r"\binom{100}{51}2^{-100}"), (r"\binom{200}{100}^{-1}", r"\binom{200}{99}^{-1}"),
    ("e^{-50}", "e^{-51}"), ("(2^{-60},1)", r"(\frac{1}{2^{61}},1)"), (r"\{2^{-60}\}", r"\{\frac{1}{2^{61}}\}"),
    ("1+2^{-60}i", r"1+\frac{i}{2^{61}}"), ("2^{-60}x", r"\frac{x}{2^{61}}"), ("x>2^{-60}", r"x>\frac{1}{2^{61}}"),
    ("y=x+2^{-60}", "x-y+2^{-61}=0"),
    (r"\begin{pmatrix}2^{-60}\\1\end{pmatrix}", r"\begin{pmatrix}\frac{1}{2^{61}}\\1\end{pmatrix}"),
    ("x^2+2^{-60}", "x^2+2^{-61}"), (r"10^{-20}\%", r"10^{-21}\%"), ("10^{40}", "10^{40}+1"),
    (r"\pi+10^{-30}", r"\pi"), (r"\left(\frac{1}{2}\right)^{100}", r"\left(\frac{1}{2}\right)^{99}"), ("|x|", "x"),
    ("x", r"\sqrt{x^2}"), (r"2\ln x", r"\ln(x^2)"), (r"\sin 30", r"\sin 30^\circ"), (r"\frac12", r"\sin 60^\circ"),
    ("i", "1"), ("-1", "i"), ("|x-1000|", "1000-x"), ("10^{20}", "10^{20}+1"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"), ("e^{-500}", "e^{-501}"),
    (r"\frac{1}{10^{300}}", r"\frac{2}{10^{300}}"), ("2^{-60}+2^{-61}", "2^{-60}"),
    ("x=2^{-60}", r"x=\frac{1}{2^{61}}"), ("[2^{-60},1]", r"[\frac{1}{2^{61}},1]"),
    (r"6.02\times 10^{23}", r"6.022\times 10^{23}"), (r"\sqrt{2}\times 10^{-20}", r"\sqrt{3}\times 10^{-20}"),
    (r"3+\sqrt{2}\times 10^{-20}", "3"),
]


@pytest.mark.parametrize(("gold", "prediction"), SAME_NUMBER)
def test_a_number_is_right_in_every_spelling_whatever_its_size(gold, prediction):
    for rules in ("strict", "open_r1"):
        assert judge([gold], prediction, rules), rules


@pytest.mark.parametrize(("gold", "prediction"), OTHER_NUMBER)
def test_another_number_is_wrong_however_little_the_two_differ(gold, prediction):
    for rules in ("strict", "open_r1"):
        assert not judge([gold], prediction, rules), rules


def test_the_tolerance_of_simplerl_is_relative_for_tiny_numbers_too():
    for gold, prediction, right in [
            (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}", False), ("0", "10^{-20}", False), ("e^{-40}", "e^{-41}", False),
            (r"6.63\times 10^{-34}", r"1.05\times 10^{-34}", False), (r"6.63\times 10^{-34}", "6.6301e-34", True),
            ("x>2^{-60}", "x>2^{-61}", False), (r"\sqrt{10^{40}+1}", "10^{20}", True), ("e^{-40}", "4.2483e-18", True)]:
        assert judge([gold], prediction, "simplerl") == right, (gold, prediction)


def test_open_r1_rounds_to_six_places_but_not_to_zero():
    for gold, prediction, right in [(r"\frac{1}{3}", "0.333333", True), (r"0.5\pi", "1.570796", True),
                                    ("0.0000012", "0.000001", True), ("0.0000004", "0.0000003", False),
                                    ("0.0000004", "0", False), (r"0.1\cdot e^{-20}", r"0.2\cdot e^{-20}", False),
                                    (r"0.1\cdot e^{-20}", r"\frac{0.2}{2e^{20}}", True)]:
        assert judge([gold], prediction, "open_r1") == right, (gold, prediction)


SAME_ANSWER = [     # a name before it, an inequality for an interval, a combination of letters, a label, plain text
    ("(1,2)", "(x,y)=(1,2)"), ("(3,4)", "A=(3,4)"), (r"\{1,2\}", r"S=\{1,2\}"), ("[0,1)", "D=[0,1)"),
    ("D=(0,1)", "(0,1)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"v=\begin{pmatrix}1\\2\end{pmatrix}"),
    ("(2,-1,3)", "(a,b,c) = (2,-1,3)"), ("(x,y)=(1,2)", "(1,2)"), ("(x,y)=(1,2)", "(y,x)=(2,1)"),
    ("(x,y)=(1,2)", "x=1,y=2"), ("x=1,y=2", "(x,y)=(1,2)"), ("(3,4)", "A(3,4)"), ("A(3,4)", "(3,4)"),
    ("(3,4)", "P_1=(3,4)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\vec{v}=\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\mathbf{v}=\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\overrightarrow{AB}=\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}x\\y\end{pmatrix}=\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"A^{-1}=\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    (r"\{1,2\}", r"A\cup B=\{1,2\}"), (r"\{1,2\}", r"x\in\{1,2\}"), (r"\{(1,2),(2,1)\}", r"(x,y)\in\{(2,1),(1,2)\}"),
    ("[0,1)", r"x \in [0,1)"), (r"x\in[0,1)", "D=[0,1)"),
    (r"(-\infty,1)\cup(3,\infty)", r"D=(3,\infty)\cup(-\infty,1)"), ("[0,1)", r"\text{Domain}=[0,1)"),
    ("y=2x+1", "2x+1"), ("2x+1", "y=2x+1"), ("(1,2)", "(x_1,x_2)=(1,2)"), (r"\{1,2\}", r"S = \{ 2, 1 \}"),
    (r"(\frac12,3)", "(x,y)=(0.5,3)"), (r"S=\{1,2\}", r"\{2,1\}"), (r"(3,\infty)", "x>3"), ("x>3", r"(3,\infty)"),
    ("x>3", r"x\in(3,\infty)"), ("(0,12)", "0<x<12"), ("0<x<12", "(0,12)"), (r"[0,\infty)", r"x\ge 0"),
    (r"(-\infty,5]", r"x \leq 5"), (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3"),
    (r"x<1 \text{ or } x>3", r"(-\infty,1)\cup(3,\infty)"), ("[-2,7]", r"-2\le x\le 7"), ("(0,12)", "12>x>0"),
    (r"(3,\infty)", "3<x"), (r"(-\infty,2)\cup(2,\infty)", r"x\neq 2"), (r"x\ne 2", r"\mathbb{R}\setminus\{2\}"),
    (r"(-\infty,\infty)", r"\mathbb{R}"), (r"\mathbb{R}", r"(-\infty,+\infty)"),
    (r"\mathbb{R}", r"\text{all real numbers}"), (r"\mathbb{R}", r"x\in\mathbb{R}"), ("0<x<12", "12>x>0"),
    ("x>3", "3<x"), (r"[\frac12,\infty)", r"x\ge 0.5"), ("(2^{-60},1)", "2^{-60}<x<1"),
    (r"(\sqrt2,\infty)", r"x>\sqrt{2}"), ("(-1,2]", r"-1<t\le 2"), ("113", "m+n=113"), ("113", "m+n=100+13=113"),
    (r"\frac{\pi}{2}", "pi/2"), ("5", "AB=5"), ("30", r"\angle A=30^\circ"), (r"30^\circ", r"\angle ABC=30^\circ"),
    (r"\frac12", r"\sin 30^\circ=\frac12"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left(\begin{array}{c}1\\2\end{array}\right)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]"),
    (r"\left(\begin{array}{c}1\\2\end{array}\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\emptyset", r"\varnothing"), (r"\varnothing", r"\{\}"), ("12", r"\text{C. } 12"), ("12", r"\text{(C) } 12"),
    ("12", "(C) 12"), ("12", "C. 12"), ("12", r"\textbf{(C)}\ 12"), ("C", r"\text{C. } 12"), ("C", "(C) 12"),
    (r"\text{(C) }12", "12"), (r"\text{(C) }12", "C"), ("204", "100m+n=204"), ("5", "AB+CD=5"), ("6", "abc=6"),
    (r"\frac12", r"\frac{m}{n}=\frac12"), ("3:1", "a:b=3:1"), ("12", "[ABC]=12"), ("5", "|AB|=5"),
    ("5", r"\overline{AB}=5"), ("1/2", "P(A)=1/2"), ("12", r"\text{Area}=12"), ("7", "f(g(2))=7"), (r"2\pi", "2*pi"),
    (r"2\pi", "2pi"), (r"\frac{\sqrt{2}}{2}", "sqrt(2)/2"), (r"\sqrt{2}", "√2"), (r"\sqrt{2}", "√(2)"),
    (r"\sqrt{2}", "sqrt(2)"), ("AB=5", "5"), (r"\angle A=30^\circ", "30"), ("5", "x=2+3=5"), (r"\infty", "infinity"),
    ("x^2", "x²"), ("1, 101", r"1,\ 101"), ("1, 101", "$1$,$101$"), (r"\frac12", r"P(A\cup B)=\frac12"),
    ("-5", r"\text{(C)}\ -5"), ("(1,2)", "P=(1,2)"), ("(x,y)=(1,2)", "P=(1,2)"), ("D=[0,1)", r"0\le x<1"),
    ("[0,1)", r"\text{Range: }[0,1)"), ("[0,1)", "D: [0,1)"), ("[0,1)", r"f(x)\in[0,1)"), (r"\{1,2\}", "S={1,2}"),
    (r"\{1,2\}", r"\{a,b\}=\{1,2\}"), ("(1,2),(3,4)", "(x,y)=(1,2),(3,4)"), ("(1,2),(3,4)", "A=(1,2), B=(3,4)"),
    (r"\text{tan}", "tan"), (r"\infty", r"\text{infinity}"), ("pi", r"\pi"), ("sin(x)", r"\sin x"),
    (r"\sin x", "sin x"), ("5", r"\text{Area}=5"), ("C(5,2)", "C(5,2)"), (r"\sqrt{2}+1", "sqrt(2)+1"),
    (r"2\sqrt{3}", "2*sqrt(3)"), (r"\langle 1,2\rangle", r"v=\langle 1,2\rangle"),
    (r"\langle 1,2\rangle", r"\vec{v}=\langle 1,2\rangle"), (r"\sqrt{5}", "sqrt5"), ("(1,2)", r"\text{vertex}=(1,2)"),
    ("x>3", r"D=(3,\infty)"), (r"(3,\infty)", r"x \in (3, \infty)"), (r"x\in(3,\infty)", "x>3"),
    ("[-2,2]", r"-2 \leq y \leq 2"), ("0.5", "P(X=2)=0.5"), ("7", "f^{-1}(3)=7"), ("3", r"\gcd(a,b)=3"),
]
OTHER_ANSWER = [    # near misses of the same kinds
    ("(1,2)", "(x,y)=(2,1)"), ("(1,2)", "(5,6)=(1,2)"), ("(1,2)", "(x,x)=(1,2)"), ("(1,2)", "(x,y,z)=(1,2)"),
    ("A=(3,4)", "B=(3,4)"), (r"\{1,2\}", r"S=\{1,3\}"), ("[0,1)", "D=(0,1)"), ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("(x,y)=(1,2)", "x=2,y=1"), ("(3,4)", "A(4,3)"), ("(3,4)", "x=3, y=4"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"v=\begin{pmatrix}1&2\end{pmatrix}"), ("10x-4y=0", "10x-4y"),
    ("x+y=5", "5"), ("xy=6", "6"), ("x^2+y^2=25", "25"), ("y=2x+1", "1"), ("2x=10", "10"), ("10", "2x=10"),
    ("25", "x^2=25"), ("5", "2x+y=5"), ("5", "6=5"), ("5", "6-1=5"), ("5", "x+y=5=6"), ("2x+1", "x+y=2x+1"),
    ("13", "x^2+y^2=13"), ("5", "x+y=5"), ("6", "xyz=6"), ("5", "a+b=6"), ("5", "a+b"), ("a+b", "a+b=5"),

    (r"(3,\infty)", r"x\ge 3"), (r"(3,\infty)", "x<3"), (r"(3,\infty)", "x>4"), ("(0,12)", r"0<x\le 12"),
    ("x>3", r"[3,\infty)"), ("x>3", "y>3"), ("(1,3)", r"x<1 \text{ or } x>3"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ and } x>3"), (r"(3,\infty)", "x>a"), (r"\mathbb{R}", r"\mathbb{Q}"),
    (r"\mathbb{R}", r"(0,\infty)"), (r"\mathbb{R}\setminus\{2\}", r"x\ne 3"), ("(2^{-60},1)", "2^{-61}<x<1"),
    ("3", "x>3"), ("(0,12)", "0<x<11"), ("[0,12]", "0<x<12"), ("(0,12)", "12<x<0"), ("x>3", "3>x"),
    ("113", "m+n=112"), ("113", "m+n=100+12=113"), ("30", r"\angle A=31^\circ"),
    (r"\frac12", r"\sin 60^\circ=\frac12"), ("5", r"\log_2 8=5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left(\begin{array}{c}2\\1\end{array}\right)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left|\begin{array}{cc}1&2\\3&4\end{array}\right|"),
    (r"\emptyset", "0"), (r"\emptyset", r"\{0\}"), ("12", r"\text{C. } 13"), ("D", r"\text{C. } 12"), ("C", "(A)(C)"),
    ("A", "(A),(B)"), ("A", r"\text{A or B}"), ("C", "12"), ("A", "A. B"), ("12", "(C)-12"), ("x", "A. y"),
    ("1, 101", "1101"), ("1101", r"1,\ 101"), ("1101", "$1$,$101$"), ("5", "x=5=y"), ("5", "x+5=5"), ("113", "m+n"),
    ("5", "y=x+5"), (r"\sqrt{2}", "sqrt(3)"), (r"\frac{\pi}{2}", "pi/3"), ("(1,2)", r"\{1,2\}"), ("P(1,2)", "Q(1,2)"),
    ("-A", "(A)-5"), ("A=(1,2),B=(3,4)", "B=(1,2),A=(3,4)"), ("(x,y)=(1,2)", "(a,b)=(1,2)"), ("C(5,2)", "10"),
    ("5", r"\text{not }x=5"), ("D=[0,1)", r"0\le x\le 1"), (r"\{1,2\}", "S={1,3}"), ("5", r"\text{wrong answer}=5"),
    ("(1,2)", "(1,2)=(1,2)"), ("(1,2)", "(3,4)=(1,2)"), ("x=(1,2)", "y=(1,2)"), ("2x=4", "2"), ("2x=4", "4"),
    ("x^2=4", "x=2"), ("12", r"\text{(C)} 12, \text{(D)} 13"), ("(a,b)", "(a,b)=(1,2)"), ("3", "2<x<3"), ("x>3", "3"),
    ("[3,5]", "3"), ("4x+y=4", "4"), ("5", "5=x+y"), ("-5", "x-y=5"), ("5", "x+y+5"),
]


@pytest.mark.parametrize(("gold", "prediction"), SAME_ANSWER)
def test_what_a_mathematician_calls_the_same_answer_is_right(gold, prediction):
    assert judge([gold], prediction, "strict")


@pytest.mark.parametrize(("gold", "prediction"), OTHER_ANSWER)
def test_a_name_or_another_form_makes_no_wrong_answer_right(gold, prediction):
    assert not judge([gold], prediction, "strict")


def test_names_of_sets_tuples_and_intervals_are_read_under_every_rule():
    for rules in math_equal.RULES:
        for gold, prediction, right in [("(1,2)", "(x,y)=(1,2)", True), (r"\{1,2\}", r"S=\{1,2\}", True),
                                        ("[0,1)", "D=[0,1)", True), ("D=(0,1)", "(0,1)", True),
                                        ("(0,12)", "0<x<12", True),
                                        ("(1,2)", "(x,y)=(2,1)", False), ("(1,2)", "(5,6)=(1,2)", False)]:
            assert judge([gold], prediction, rules) == right, (rules, gold, prediction)


@pytest.fixture(scope="module")
def graders():
    workers = Workers(num_workers=1)
    yield workers
    workers.close()


def verdicts(workers, questions, budget_s=600):
    """{index: verdict} of (golds, prediction, rules) triples."""
    for i, (golds, prediction, rules) in enumerate(questions):
        workers.submit(i, golds, prediction, rules)
    found, end = {}, time.monotonic() + budget_s
    while len(found) < len(questions) and time.monotonic() < end:
        found |= dict(workers.poll(wait_s=0.5))
    return found


def equal(graders, gold, prediction, rules="strict"):
    right = math_equal.decide([gold], prediction, rules)
    return right if right is not None else verdicts(graders, [([gold], prediction, rules)])[0] == "right"


@pytest.mark.parametrize(("gold", "prediction"), RIGHT)
def test_an_equal_value_in_another_usual_form_is_right(graders, gold, prediction):
    assert equal(graders, gold, prediction)


@pytest.mark.parametrize(("gold", "prediction"), WRONG)
def test_another_value_or_structure_is_wrong(graders, gold, prediction):
    assert not equal(graders, gold, prediction)


@pytest.mark.parametrize(("rules", "gold", "prediction", "right"), [
    ("simplerl", "5", "500", False), ("simplerl", "5", "0.05", False), ("simplerl", "10000", "10000.9", True),
    ("simplerl", "(1,2)", "[1,2)", True), ("simplerl", "1,2", "2,1", False), ("simplerl", "5", r"5\%", True),
    ("simplerl", r"2\sqrt{2}", "2.82843", True), ("simplerl", r"2\sqrt{2}", "2.83", False),
    ("simplerl", "x", "y", False),
    ("open_r1", "0.5", r"50\%", True), ("open_r1", "5", r"5\%", False), ("open_r1", "1,2", "2,1", True),
    ("open_r1", "(1,2)", "[1,2]", False), ("open_r1", r"\frac{1}{3}", "0.333333", True),
    ("open_r1", r"\frac{1}{3}", "0.333", False), ("open_r1", r"50\%", "50", True),
    ("strict", r"\frac{1}{3}", "0.333333", False)])
def test_each_published_grader_keeps_its_tolerances(graders, rules, gold, prediction, right):
    assert equal(graders, gold, prediction, rules) == right


@pytest.mark.parametrize("prediction", [
    "(" * 500 + "5" + ")" * 500, "5" * 100_000, "1+" * 20_000 + "1", r"\frac{1}{" * 300 + "5" + "}" * 300,
    "{" * 100_000, "9^{9^{9^9}}", "9^{9^9}", "x^{y^{z}}", "10^{10^{10}}", "1000000!", "5!!!!", r"\binom{1e9}{5e8}",
    "(x+1)^{5000}", "9^99999", r"\sum_{i=1}^{10^9} i", r"\infty", "1/0", r"\frac{5}{0}", "x" * 150, "a" * 199 + "="])
def test_hostile_predictions_are_refused_at_once_without_sympy(prediction):
    start = time.process_time()
    assert math_equal.decide(["5"], prediction, "strict") is False
    assert time.process_time() - start < 2  # of CPU; about 1 ms, and what is refused here would take minutes


def test_scrambled_latex_never_raises():
    rng = random.Random(0)
    pieces = [r"\frac", "{", "}", "12", "3", r"\text{", " cm", "$", r"\$", "^", r"\circ", ",", r"\!", "_", "(", "]",
              "%", r"\left", "π", "=", r"\pm", r"\cup", " and "]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
        math_equal.decide([text], math_equal.tidy(text), "strict")
        math_equal.decide(["5", "(1,2)"], text, "simplerl")


def test_a_gold_equals_its_respelling(graders):
    for gold in (r"\left( \frac{1}{2}, -3 \right)", r"\begin{pmatrix} -7 \\ 16 \end{pmatrix}", r"12\frac{3}{5}",
                 r"4\pi - 2\sqrt{3}", r"\text{Evelyn}"):
        for respelled in (gold.replace(" ", ""), gold.replace(r"\frac", r"\dfrac"), f"${gold}$", gold + ".",
                          "{" + gold + "}"):
            assert math_equal.decide([gold], respelled, "strict") is True, respelled


# ----------------------------------------------------------------------------------------------------------------------
# Workers under attack. A judge of our own plays the verifier that misbehaves.

JUDGE = """
import os, sys, time
sys.path.insert(0, {root!r})
from tasks.workers import serve
def judge(golds, prediction, rules):
    if prediction == "hang":
        while True: pass
    if prediction == "sleep":
        time.sleep(60)
    if prediction == "exit":
        os._exit(3)
    if prediction == "noise":
        print("hello")
    if prediction == "memory":
        try:
            return len(b"x" * (4 << 30)) > 0
        except MemoryError:
            return False
    if prediction == "preload":
        return "LD_PRELOAD" not in os.environ
    if prediction == "torch":
        return "torch" not in sys.modules
    return prediction in golds
serve(judge)
"""


def faulty(num_workers=1, timeout_s=2.0):  # for an answer that takes a millisecond on an idle machine
    root = os.path.dirname(os.path.dirname(os.path.abspath(math_equal.__file__)))
    return Workers(num_workers, timeout_s, command=[sys.executable, "-c", JUDGE.format(root=root)])


def children():
    """Pids of our child processes, zombies included."""
    me, found = str(os.getpid()), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                if f.read().rpartition(")")[2].split()[1] == me:
                    found.append(int(pid))
        except OSError:
            pass                        # gone meanwhile
    return found


@pytest.mark.parametrize(("bad", "verdict"), [("hang", "timeout"), ("sleep", "timeout"), ("exit", "error"),
                                              ("memory", "wrong")])
def test_a_misbehaving_job_ends_alone_and_leaves_no_zombie(bad, verdict):
    before, workers = set(children()), faulty()
    try:
        questions = [(["5"], prediction, "strict") for prediction in ("5", bad, "5", bad, "6", "noise", "5")]
        found = verdicts(workers, questions)
        assert found == dict(enumerate(["right", verdict, "right", verdict, "wrong", "wrong", "right"]))
        assert len(set(children()) - before) <= 1
    finally:
        workers.close()
    assert set(children()) == before


def test_a_hanging_job_does_not_delay_the_others():
    workers = faulty(num_workers=2, timeout_s=600)
    try:
        for i in range(20):
            workers.submit(i, ["5"], "hang" if i == 0 else "5", "strict")
        done, end = {}, time.monotonic() + 300
        while len(done) < 19 and time.monotonic() < end:
            done |= dict(workers.poll(0.5))
        assert set(done.values()) == {"right"} and len(done) == 19
    finally:
        workers.close()


def test_an_answer_that_came_in_time_counts_although_nobody_looked():
    workers = faulty(timeout_s=600)
    try:
        assert verdicts(workers, [(["5"], "5", "strict")]) == {0: "right"}
        workers.submit(1, ["5"], "5", "strict")
        found = workers.poll()
        if not found:
            assert workers.selector.select(300)         # the answer lies in the pipe
            workers.workers[0].deadline = 0.0           # the caller was busy beyond the deadline
            found = workers.poll()
        assert found == [(1, "right")]
    finally:
        workers.close()


def test_workers_have_no_preload_and_no_torch(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "")
    workers = faulty(timeout_s=600)
    try:
        assert verdicts(workers, [([], "preload", "strict"), ([], "torch", "strict")]) == {0: "right", 1: "right"}
    finally:
        workers.close()


def test_workers_are_recycled(monkeypatch):
    monkeypatch.setattr("tasks.workers.JOBS_PER_WORKER", 3)
    workers = faulty(timeout_s=600)
    try:
        pids = set()
        for i in range(8):
            workers.submit(i, ["5"], "5", "strict")
            while not workers.poll(0.5):
                pids |= {w.process.pid for w in workers.workers}
        assert len(pids) == 3
    finally:
        workers.close()


def test_workers_that_cannot_start_answer_error_instead_of_spinning():
    workers = Workers(1, command=[sys.executable, "-c", "import sys; sys.exit(1)"])
    try:
        assert set(verdicts(workers, [(["5"], "5", "strict")] * 5).values()) == {"error"}
    finally:
        workers.close()


def test_a_worker_ends_when_its_parent_is_killed():
    code = ("import time, os\nfrom tasks.workers import Workers\nw = Workers(1)\n"
            "w.submit(0, ['2\\\\sqrt 2'], '\\\\sqrt 8', 'strict')\n"
            "while not w.poll(1): pass\nprint(w.workers[0].process.pid, flush=True)\ntime.sleep(600)\n")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                              cwd=os.path.dirname(os.path.dirname(os.path.abspath(math_equal.__file__))))
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 300
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        with open(f"/proc/{pid}/stat") as f:
            if f.read().rpartition(")")[2].split()[0] == "Z":       # its new parent may be slow to reap
                break
        time.sleep(0.1)
    else:
        assert not os.path.exists(f"/proc/{pid}")


def test_sympy_itself_is_killed_at_the_deadline(graders):
    slow = Workers(1, timeout_s=0.3)
    try:
        assert verdicts(slow, [([r"x^{900}"], r"(x+1)^{900}(x+2)^{900}", "strict")]) == {0: "timeout"}
        slow.timeout_s = 600            # and the next job gets a new process
        assert verdicts(slow, [([r"2\sqrt{2}"], r"\sqrt{8}", "strict")]) == {0: "right"}
    finally:
        slow.close()
