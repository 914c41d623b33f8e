"""What is optimised: differentiable torch functions of a fixed and a warped moving image."""
