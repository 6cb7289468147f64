class current_platform:
    @staticmethod
    def is_rocm():
        return False
