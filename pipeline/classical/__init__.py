"""The methods that ITK and elastix run, and the classical ones that we wrote."""
